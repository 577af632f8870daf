// What of a mapping a core file holds, and where: the kernel's policy, and the format's limits.
#include "src/core/layout.h"

#include <elf.h>
#include <sys/mman.h>

#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/atomic_file.h"
#include "tests/support/child_process.h"
#include "tests/support/temp_dir.h"

namespace predump::core {
namespace {

using base::AddressRange;
using base::ByteCount;
using base::RemoteAddress;
using kernel::MapsEntry;
using kernel::VmaFlags;
using kernel::VmFlag;

constexpr uint64_t kPage = 4096;
constexpr uint64_t kDefaultFilter =
    kFilterAnonymousPrivate | kFilterAnonymousShared | kFilterElfHeaders | kFilterHugetlbPrivate;

MapsEntry Entry(uint64_t first_page, uint64_t pages, const std::string& path = "",
                uint64_t inode = 0, bool shared = false) {
  MapsEntry entry;
  entry.range = AddressRange::FromOrdered(first_page * kPage, (first_page + pages) * kPage);
  entry.prot = PROT_READ | PROT_WRITE;
  entry.path = path;
  entry.inode = inode;
  entry.shared = shared;
  return entry;
}

VmaFlags Flags(uint64_t first_page, uint64_t pages, VmFlag flag) {
  return {AddressRange::FromOrdered(first_page * kPage, (first_page + pages) * kPage),
          static_cast<uint64_t>(VmFlag::kReadable) | static_cast<uint64_t>(flag), 0};
}

Content ContentOf(const MapsEntry& entry, uint64_t filter, VmFlag flag = VmFlag::kReadable) {
  return PolicyOf({entry, Flags(0, 1, flag)}, filter).content;
}

Taken Take(const MapsEntry& entry, const std::vector<uint64_t>& pages, bool rest_is_zeros) {
  Taken taken = {{entry, {}}, {}, rest_is_zeros};
  for (const uint64_t page : pages) {
    taken.pages.Add(AddressRange::FromOrdered(page * kPage, (page + 1) * kPage));
  }
  return taken;
}

TEST(CorePolicy, EachKindHasItsBitOfTheFilter) {
  const MapsEntry file = Entry(0, 1, "/lib/x", 7);
  const MapsEntry shared_file = Entry(0, 1, "/lib/x", 7, true);
  MapsEntry memfd = Entry(0, 1, "/memfd:x", 7, true);
  memfd.deleted = true;
  const MapsEntry system_v = Entry(0, 1, "/SYSV00000000", 0, true);
  struct {
    MapsEntry entry;
    uint64_t bit;
    Content content;
    VmFlag flag = VmFlag::kReadable;
  } const cases[] = {
      {Entry(0, 1), kFilterAnonymousPrivate, Content::kData},
      {Entry(0, 1, "[heap]"), kFilterAnonymousPrivate, Content::kData},
      {Entry(0, 1, "/dev/zero", 4), kFilterAnonymousPrivate, Content::kData},
      {file, kFilterAnonymousPrivate, Content::kOwnPages},
      {memfd, kFilterAnonymousShared, Content::kSharedObject},
      {system_v, kFilterAnonymousShared, Content::kSharedObject},
      {file, kFilterFilePrivate, Content::kWholeFile},
      {shared_file, kFilterFileShared, Content::kSharedObject},
      {memfd, kFilterHugetlbShared, Content::kSharedObject, VmFlag::kHugetlb},
      {Entry(0, 1, "/anon_hugepage", 9), kFilterHugetlbPrivate, Content::kData, VmFlag::kHugetlb},
  };
  for (const auto& one : cases) {
    SCOPED_TRACE(one.entry.path);
    EXPECT_EQ(ContentOf(one.entry, one.bit, one.flag), one.content);
    const uint64_t others =
        ~one.bit & ~(one.content == Content::kOwnPages ? kFilterFilePrivate : 0);
    if (one.content == Content::kWholeFile) continue;  // own pages remain
    EXPECT_EQ(ContentOf(one.entry, others, one.flag), Content::kNothing);
  }
}

TEST(CorePolicy, AdviceAndDevicesOverruleTheFilter) {
  for (const VmFlag flag : {VmFlag::kDontDump, VmFlag::kIo, VmFlag::kPurePfn}) {
    EXPECT_EQ(ContentOf(Entry(0, 1), ~uint64_t{0}, flag), Content::kNothing);
  }
  for (const char* name : {"[vvar]", "[vvar_vclock]", "[vsyscall]", "[uprobes]"}) {
    EXPECT_EQ(ContentOf(Entry(0, 1, name), ~uint64_t{0}), Content::kNothing) << name;
  }
  EXPECT_EQ(ContentOf(Entry(0, 1, "[vdso]"), 0, VmFlag::kDontDump), Content::kVdso);
}

TEST(CorePolicy, ElfHeadersAreOfReadableStartsOfPrivateFiles) {
  MapsEntry entry = Entry(0, 4, "/lib/x", 7);
  const auto asked = [&](uint64_t filter) { return PolicyOf({entry, {}}, filter).elf_header; };
  EXPECT_TRUE(asked(kDefaultFilter));
  EXPECT_FALSE(asked(kDefaultFilter & ~kFilterElfHeaders));
  entry.file_offset = kPage;
  EXPECT_FALSE(asked(kDefaultFilter));
  entry.file_offset = 0;
  entry.prot = PROT_NONE;
  EXPECT_FALSE(asked(kDefaultFilter));
}

TEST(CoreLayout, AdviceForOnePageDoesNotCountForItsNeighbours) {
  const std::vector<Mapping> mappings =
      WithFlags({Entry(10, 10), Entry(30, 2, "/lib/x", 7)},
                {Flags(8, 4, VmFlag::kReadable), Flags(12, 1, VmFlag::kDontDump),
                 Flags(13, 5, VmFlag::kReadable), Flags(31, 9, VmFlag::kDontDump)});
  std::vector<std::string> ranges;
  std::vector<bool> dumped;
  for (const Mapping& one : mappings) {
    ranges.push_back(one.entry.range.ToString());
    dumped.push_back(!one.flags.Has(VmFlag::kDontDump));
  }
  EXPECT_THAT(ranges, testing::ElementsAre("a000-c000", "c000-d000", "d000-12000", "12000-14000",
                                           "1e000-1f000", "1f000-20000"));
  EXPECT_THAT(dumped, testing::ElementsAre(true, false, true, true, true, false));
  EXPECT_EQ(mappings[3].flags.bits, 0u);  // unmapped since
  EXPECT_EQ(mappings[5].entry.file_offset, kPage);
}

TEST(CoreLayout, AnonymousMemoryIsThereWholeAndFilesOnlyWhereTheyAreTheProcesssOwn) {
  const Layout layout = Layout::Create(
      {Take(Entry(1, 4), {2}, true), Take(Entry(5, 4), {}, true),
       Take(Entry(9, 6, "/lib/x", 7), {10, 11, 13}, false), Take(Entry(20, 1), {20}, true)},
      ByteCount(100));
  std::vector<std::pair<uint64_t, uint64_t>> sizes;  // pages in memory, in the file
  for (const Segment& one : layout.segments()) {
    EXPECT_EQ(one.offset % kPage, 0u);
    sizes.emplace_back(one.range.size().value() / kPage, one.in_file.value() / kPage);
  }
  using Pages = std::pair<uint64_t, uint64_t>;
  EXPECT_THAT(sizes, testing::ElementsAre(Pages(4, 4), Pages(4, 0), Pages(1, 0), Pages(3, 2),
                                          Pages(2, 1), Pages(1, 1)));
  const auto page_of = [&](uint64_t page) -> int64_t {
    const auto place = layout.PlaceOf(RemoteAddress(page * kPage));
    return place.has_value() ? static_cast<int64_t>(place->offset / kPage) : -1;
  };
  EXPECT_EQ(page_of(1), 1);
  EXPECT_EQ(page_of(4), 4);
  EXPECT_EQ(page_of(5), -1);
  EXPECT_EQ(page_of(9), -1);
  EXPECT_EQ(page_of(10), 5);
  EXPECT_EQ(page_of(11), 6);
  EXPECT_EQ(page_of(12), -1);
  EXPECT_EQ(page_of(13), 7);
  EXPECT_EQ(page_of(20), 8);
  EXPECT_EQ(page_of(21), -1);
  EXPECT_EQ(layout.file_size(), 9 * kPage);
  EXPECT_EQ(layout.PlaceOf(RemoteAddress(10 * kPage))->room, ByteCount(2 * kPage));
}

TEST(CoreLayout, PastTheLimitASectionHeaderTellsHowManySegmentsThereAre) {
  for (const uint64_t count : {PN_XNUM - 2, PN_XNUM - 1, PN_XNUM + 1000}) {
    SCOPED_TRACE(count);
    std::vector<Taken> taken;
    for (uint64_t i = 0; i < count; ++i) taken.push_back(Take(Entry(2 * i, 1), {}, true));
    const Layout layout = Layout::Create(taken, ByteCount(64));
    const std::string bytes = layout.Headers();
    Elf64_Ehdr header;
    std::memcpy(&header, bytes.data(), sizeof header);
    Elf64_Phdr notes;
    std::memcpy(&notes, bytes.data() + header.e_phoff, sizeof notes);
    EXPECT_EQ(notes.p_type, static_cast<Elf64_Word>(PT_NOTE));
    EXPECT_EQ(notes.p_offset, bytes.size());
    if (count + 1 < PN_XNUM) {
      EXPECT_EQ(header.e_phnum, count + 1);
      EXPECT_EQ(header.e_shnum, 0);
      continue;
    }
    EXPECT_EQ(header.e_phnum, PN_XNUM);
    ASSERT_EQ(header.e_shnum, 1);
    Elf64_Shdr section;
    ASSERT_LE(header.e_shoff + sizeof section, bytes.size());
    std::memcpy(&section, bytes.data() + header.e_shoff, sizeof section);
    EXPECT_EQ(section.sh_info, count + 1);
    EXPECT_EQ(section.sh_type, static_cast<Elf64_Word>(SHT_NULL));
    Elf64_Phdr last;
    std::memcpy(&last, bytes.data() + header.e_phoff + count * sizeof last, sizeof last);
    EXPECT_EQ(last.p_vaddr, 2 * (count - 1) * kPage);
  }
}

TEST(CoreLayout, ReadelfCountsThemToo) {
  const auto directory = test_support::TempDir::Create();
  ASSERT_TRUE(directory.ok());
  const std::string path = directory->File("core");
  std::vector<Taken> taken;
  for (uint64_t i = 0; i < 70'000; ++i) taken.push_back(Take(Entry(2 * i, 1), {}, true));
  const std::string headers = Layout::Create(taken, ByteCount(0)).Headers();
  ASSERT_TRUE(base::WriteFileAtomically(path, headers).ok());
  const auto readelf = test_support::RunCommand({"readelf", "-hlW", path});
  ASSERT_TRUE(readelf.ok()) << readelf.status();
  EXPECT_TRUE(readelf->exit.ok());
  EXPECT_EQ(readelf->errors, "");
  EXPECT_THAT(readelf->output.substr(0, 2000), testing::HasSubstr("65535 (70001)"));
}

}  // namespace
}  // namespace predump::core
