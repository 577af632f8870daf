#include "src/pagemap/vma.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/errors.h"
#include "tests/pagemap/memory_actor.h"
#include "tests/support/temp_dir.h"

namespace predump::pagemap {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kPage = 4096;
constexpr uint64_t kBase = 0x700000000000;
constexpr int kGuardInstall = 102;  // MADV_GUARD_INSTALL, Linux 6.13
constexpr int kDroppable = 8;       // MAP_DROPPABLE, Linux 6.11

Vma ClassifyLine(const std::string& line, kernel::VmaFlags flags = {}) {
  const auto entries = kernel::ParseMaps(line + "\n");
  EXPECT_TRUE(entries.ok() && entries->size() == 1) << line;
  return ClassifyMapping(entries->front(), flags);
}

kernel::VmaFlags Flags(kernel::VmFlag flag) {
  kernel::VmaFlags flags;
  flags.bits = static_cast<uint64_t>(kernel::VmFlag::kMayRead) | static_cast<uint64_t>(flag);
  return flags;
}

TEST(ClassifyMappingTest, KindsThatMove) {
  EXPECT_EQ(ClassifyLine("1000-3000 rw-p 00000000 00:00 0 ").kind, VmaKind::kAnonymousPrivate);
  EXPECT_EQ(ClassifyLine("1000-3000 rw-p 00000000 00:00 0 [heap]").kind,
            VmaKind::kAnonymousPrivate);
  EXPECT_EQ(ClassifyLine("1000-3000 rw-p 00000000 00:00 0 [anon:glibc: malloc]").kind,
            VmaKind::kAnonymousPrivate);
  const Vma stack = ClassifyLine("1000-3000 rw-p 00000000 00:00 0 [stack]");
  EXPECT_EQ(stack.kind, VmaKind::kAnonymousPrivate);
  EXPECT_TRUE(stack.grows_down);
  const Vma file = ClassifyLine("1000-3000 r-xp 00002000 fe:00 12 /usr/bin/x");
  EXPECT_EQ(file.kind, VmaKind::kFilePrivate);
  EXPECT_EQ(file.file_offset_bytes, 0x2000u);
  EXPECT_EQ(file.prot, static_cast<uint32_t>(PROT_READ | PROT_EXEC));
  EXPECT_EQ(ClassifyLine("1000-3000 rw-s 00000000 fe:00 12 /var/x").kind, VmaKind::kFileShared);
  EXPECT_EQ(ClassifyLine("1000-3000 rw-s 00000000 00:1a 12 /dev/shm/x").kind, VmaKind::kFileShared);
  EXPECT_EQ(ClassifyLine("1000-3000 r-xp 00000000 00:00 0 [vdso]").kind, VmaKind::kVdso);
  EXPECT_EQ(ClassifyLine("1000-3000 r--p 00000000 00:00 0 [vvar]").kind, VmaKind::kVvar);
  EXPECT_EQ(ClassifyLine("1000-3000 r--p 00000000 00:00 0 [vvar_vclock]").kind, VmaKind::kVvar);
  EXPECT_EQ(ClassifyLine("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]").kind,
            VmaKind::kVsyscall);
}

TEST(ClassifyMappingTest, PrivateMappingsOfTheZeroDeviceAreAnonymous) {
  const Vma zero = ClassifyLine("1000-3000 rw-p 00003000 00:06 5 /dev/zero");
  EXPECT_EQ(zero.kind, VmaKind::kAnonymousPrivate);
  EXPECT_EQ(zero.file_offset_bytes, 0u);
}

struct Refused {
  std::string line;
  std::string why;
};

TEST(ClassifyMappingTest, NamesOfWhatCannotMoveAreRefusedWithAReason) {
  for (const Refused& refused : std::vector<Refused>{
           {"1000-3000 rw-s 00000000 00:01 5 /dev/zero (deleted)", "shared anonymous"},
           {"1000-3000 rw-s 00000000 00:01 5 [anon_shmem:x]", "shared anonymous"},
           {"1000-3000 rw-s 00000000 00:01 5 /SYSV00000000 (deleted)", "System V"},
           {"1000-3000 rw-s 00000000 00:01 5 /memfd:x (deleted)", "memfd_create"},
           {"1000-3000 rw-p 00000000 00:01 5 /memfd:x (deleted)", "memfd_create"},
           {"1000-3000 rw-s 00000000 00:0f 5 /[aio] (deleted)", "asynchronous I/O"},
           {"1000-3000 --xp 00000000 00:00 0 [uprobes]", "uprobes"},
           {"1000-3000 rw-s 00000000 00:0e 5 anon_inode:[io_uring]", "io_uring"},
           {"1000-3000 rw-s 00000000 00:08 5 socket:[77]", "socket"},
           {"1000-3000 rw-s 00000000 00:06 5 /dev/fb0", "device /dev/fb0"},
           {"1000-3000 rw-p 00000000 00:0f 5 /anon_hugepage (deleted)", "hugetlb"},
           {"1000-3000 r--p 00000000 fe:00 5 /usr/lib/x.so (deleted)", "deleted file"},
           {"1000-3000 rw-s 00000000 00:00 0 ", "unknown kind"},
       }) {
    const Vma vma = ClassifyLine(refused.line);
    EXPECT_EQ(vma.kind, VmaKind::kUnsupported) << refused.line;
    EXPECT_THAT(vma.why_unsupported, HasSubstr(refused.why)) << refused.line;
  }
}

TEST(ClassifyMappingTest, FlagsOfWhatCannotMoveAreRefusedWithAReason) {
  using kernel::VmFlag;
  const std::string line = "1000-3000 rw-p 00000000 00:00 0 ";
  for (const auto& [flag, why] : std::vector<std::pair<VmFlag, std::string>>{
           {VmFlag::kHugetlb, "hugetlb"},
           {VmFlag::kIo, "VM_IO"},
           {VmFlag::kPurePfn, "VM_PFNMAP"},
           {VmFlag::kMixedMap, "VM_MIXEDMAP"},
           {VmFlag::kShadowStack, "shadow stack"},
           {VmFlag::kSealed, "mseal"},
           {VmFlag::kGuard, "guard"},
           {VmFlag::kDroppable, "droppable"},
           {VmFlag::kSynchronousFault, "MAP_SYNC"},
           {VmFlag::kUnknown, "does not know"},
       }) {
    const Vma vma = ClassifyLine(line, Flags(flag));
    EXPECT_EQ(vma.kind, VmaKind::kUnsupported) << why;
    EXPECT_THAT(vma.why_unsupported, HasSubstr(why));
  }
  kernel::VmaFlags keyed = Flags(VmFlag::kReadable);
  keyed.protection_key = 3;
  EXPECT_THAT(ClassifyLine(line, keyed).why_unsupported, HasSubstr("protection key 3"));
  EXPECT_EQ(ClassifyLine(line, Flags(VmFlag::kDontDump)).kind, VmaKind::kAnonymousPrivate);
  // vvar is a pfn mapping of the kernel's own.
  EXPECT_EQ(ClassifyLine("1000-3000 r--p 00000000 00:00 0 [vvar]", Flags(VmFlag::kPurePfn)).kind,
            VmaKind::kVvar);
}

TEST(OverlayFlagsTest, SetsFlagsByRangeAndRefusesWhatTheyShow) {
  const auto entries = kernel::ParseMaps(
      "1000-3000 rw-p 00000000 00:00 0 \n"
      "3000-8000 rw-p 00000000 00:00 0 \n"
      "9000-a000 rw-p 00000000 00:00 0 \n");
  ASSERT_TRUE(entries.ok());
  std::vector<Vma> vmas;
  for (const auto& entry : *entries) vmas.push_back(ClassifyMapping(entry, {}));
  VmaList list(vmas);
  std::vector<kernel::VmaFlags> flags(3);
  flags[0] = Flags(kernel::VmFlag::kGrowsDown);
  flags[0].range = base::AddressRange::FromOrdered(0x1000, 0x3000);
  flags[1] = Flags(kernel::VmFlag::kHugePage);
  flags[1].range = base::AddressRange::FromOrdered(0x3000, 0x5000);
  flags[2] = Flags(kernel::VmFlag::kSealed);
  flags[2].range = base::AddressRange::FromOrdered(0x5000, 0x8000);
  OverlayFlags(list, flags);
  EXPECT_TRUE(list.vmas()[0].grows_down);
  EXPECT_TRUE(list.vmas()[0].flags_known());
  EXPECT_TRUE(list.vmas()[1].flags.Has(kernel::VmFlag::kHugePage));
  EXPECT_EQ(list.vmas()[1].kind, VmaKind::kUnsupported);
  EXPECT_FALSE(list.vmas()[2].flags_known());
  EXPECT_EQ(list.vmas()[2].kind, VmaKind::kAnonymousPrivate);
}

TEST(VmaListTest, FindsTheMappingOfAnAddress) {
  const auto entries = kernel::ParseMaps(
      "1000-3000 rw-p 00000000 00:00 0 \n"
      "5000-6000 rw-p 00000000 00:00 0 \n");
  std::vector<Vma> vmas;
  for (const auto& entry : *entries) vmas.push_back(ClassifyMapping(entry, {}));
  const VmaList list(vmas);
  EXPECT_EQ(list.Find(base::RemoteAddress(0x2fff)), &list.vmas()[0]);
  EXPECT_EQ(list.Find(base::RemoteAddress(0x3000)), nullptr);
  EXPECT_EQ(list.Find(base::RemoteAddress(0x5000)), &list.vmas()[1]);
  EXPECT_EQ(list.Find(base::RemoteAddress(0x6000)), nullptr);
}

class VmaReadTest : public testing::Test {
 protected:
  Vma At(uint64_t address, bool with_flags = true) {
    const auto list = VmaList::Read(actor_.process(), with_flags);
    EXPECT_TRUE(list.ok()) << list.status();
    const Vma* vma = list->Find(base::RemoteAddress(address));
    EXPECT_NE(vma, nullptr);
    return vma != nullptr ? *vma : Vma();
  }

  MemoryActor actor_;
};

TEST_F(VmaReadTest, SeesFlagsOnlyWhenAsked) {
  actor_.Map(kBase, 4 * kPage);
  ASSERT_EQ(actor_.Syscall(SYS_madvise, {kBase, 4 * kPage, MADV_MERGEABLE}), 0);
  EXPECT_TRUE(At(kBase).mergeable());
  EXPECT_FALSE(At(kBase, false).flags_known());
}

TEST_F(VmaReadTest, RefusesGuardRegions) {
  actor_.Map(kBase, 4 * kPage);
  EXPECT_EQ(At(kBase).kind, VmaKind::kAnonymousPrivate);
  ASSERT_EQ(actor_.Syscall(SYS_madvise, {kBase + kPage, kPage, kGuardInstall}), 0);
  EXPECT_EQ(At(kBase).kind, VmaKind::kUnsupported);
  EXPECT_THAT(At(kBase).why_unsupported, HasSubstr("guard"));
}

TEST_F(VmaReadTest, RefusesSealedMappings) {
  actor_.Map(kBase, 4 * kPage);
  ASSERT_EQ(actor_.Syscall(462, {kBase, 4 * kPage, 0}), 0);  // mseal(2), Linux 6.10
  EXPECT_THAT(At(kBase).why_unsupported, HasSubstr("mseal"));
}

TEST_F(VmaReadTest, RefusesDroppableMemory) {
  const int64_t at =
      actor_.Syscall(SYS_mmap, {kBase, 4 * kPage, PROT_READ | PROT_WRITE,
                                static_cast<uint64_t>(kDroppable | MAP_ANONYMOUS | MAP_FIXED),
                                static_cast<uint64_t>(-1)});
  ASSERT_EQ(at, static_cast<int64_t>(kBase));
  EXPECT_THAT(At(kBase).why_unsupported, HasSubstr("droppable"));
}

TEST_F(VmaReadTest, RefusesSharedAnonymousAndSystemVMemory) {
  const int64_t shared =
      actor_.Syscall(SYS_mmap, {kBase, 4 * kPage, PROT_READ, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED,
                                static_cast<uint64_t>(-1)});
  ASSERT_EQ(shared, static_cast<int64_t>(kBase));
  EXPECT_THAT(At(kBase).why_unsupported, HasSubstr("shared anonymous"));
  const int64_t id = actor_.Syscall(SYS_shmget, {0, kPage, 0600 | 01000});
  ASSERT_GE(id, 0);
  const int64_t at = actor_.Syscall(SYS_shmat, {static_cast<uint64_t>(id), 0, 0});
  actor_.Syscall(SYS_shmctl, {static_cast<uint64_t>(id), 0, 0});  // IPC_RMID: gone with the child
  ASSERT_GT(at, 0);
  EXPECT_THAT(At(static_cast<uint64_t>(at)).why_unsupported, HasSubstr("System V"));
}

TEST_F(VmaReadTest, RefusesTheRingOfAsynchronousIo) {
  actor_.Map(kBase, kPage);
  ASSERT_EQ(actor_.Syscall(SYS_io_setup, {8, kBase}), 0);
  const int64_t ring = actor_.Call(
      [](const MemoryActor::Arguments& a) -> int64_t { return *reinterpret_cast<int64_t*>(a[0]); },
      {kBase});
  EXPECT_THAT(At(static_cast<uint64_t>(ring)).why_unsupported, HasSubstr("asynchronous I/O"));
}

TEST_F(VmaReadTest, PrivateZeroDeviceIsAnonymous) {
  actor_.MapFile("/dev/zero", kBase, 4 * kPage, MAP_PRIVATE);
  EXPECT_EQ(At(kBase).kind, VmaKind::kAnonymousPrivate);
}

TEST_F(VmaReadTest, AnExitedProcessIsReportedAsSuch) {
  actor_.Kill();
  EXPECT_TRUE(base::IsTargetExited(VmaList::Read(actor_.process(), true).status()));
}

}  // namespace
}  // namespace predump::pagemap
