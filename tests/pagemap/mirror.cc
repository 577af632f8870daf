#include "tests/pagemap/mirror.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "src/kernel/pagemap_scan.h"
#include "src/kernel/process_memory.h"
#include "tests/pagemap/memory_actor.h"

namespace predump::pagemap {
namespace {

constexpr uint64_t kPage = 4096;

std::vector<std::byte> FilePage(const kernel::ProcessHandle& process, const Vma& vma,
                                uint64_t page) {
  std::vector<std::byte> bytes(kPage, std::byte{0});
  auto file = process.OpenProc(absl::StrCat("map_files/", vma.range.ToString()), O_RDONLY);
  EXPECT_TRUE(file.ok()) << file.status();
  if (!file.ok()) return bytes;
  const uint64_t offset = vma.file_offset_bytes + page - vma.range.start().value();
  EXPECT_GE(::pread(file->get(), bytes.data(), kPage, static_cast<off_t>(offset)), 0);
  return bytes;
}

}  // namespace

void Mirror::Apply(const std::vector<LayoutOp>& ops) {
  for (const LayoutOp& op : ops) {
    pages_.erase(pages_.lower_bound(op.range.start().value()),
                 pages_.lower_bound(op.range.end().value()));
  }
}

void Mirror::Drop(const ExtentSet& ranges) {
  for (const Extent& extent : ranges.extents()) {
    pages_.erase(pages_.lower_bound(extent.start().value()),
                 pages_.lower_bound(extent.end().value()));
  }
}

void Mirror::Store(std::span<const Extent> extents, std::span<const std::byte> bytes) {
  for (const Extent& extent : extents) {
    for (uint64_t at = extent.start().value(); at < extent.end().value(); at += kPage) {
      ASSERT_GE(bytes.size(), kPage);
      pages_[at].assign(bytes.begin(), bytes.begin() + kPage);
      bytes = bytes.subspan(kPage);
    }
  }
  EXPECT_TRUE(bytes.empty());
}

std::vector<std::byte> Mirror::PageOf(const kernel::ProcessHandle& process, const Vma& vma,
                                      uint64_t page) const {
  if (const auto it = pages_.find(page); it != pages_.end()) return it->second;
  if (vma.kind == VmaKind::kFilePrivate) return FilePage(process, vma, page);
  return std::vector<std::byte>(kPage, std::byte{0});
}

std::vector<uint64_t> Mirror::Differences(const kernel::ProcessHandle& process,
                                          const VmaList& vmas) const {
  const auto memory = kernel::ProcessMemory::Open(process, O_RDONLY);
  const auto pagemap = kernel::PagemapFile::Open(process);
  EXPECT_TRUE(memory.ok() && pagemap.ok());
  std::vector<uint64_t> different;
  std::vector<kernel::PageRegion> regions(1 << 16);
  std::vector<std::byte> real(kPage);
  for (const Vma& vma : vmas.vmas()) {
    if (!vma.is_private_memory()) continue;
    std::set<uint64_t> candidates;
    for (auto it = pages_.lower_bound(vma.range.start().value());
         it != pages_.end() && it->first < vma.range.end().value(); ++it) {
      candidates.insert(it->first);
    }
    const auto scan =
        pagemap->Scan({.range = vma.range,
                       .category_anyof_mask = kernel::kPageIsPresent | kernel::kPageIsSwapped,
                       .return_mask = kernel::kPageIsPresent},
                      regions);
    EXPECT_TRUE(scan.ok() && scan->walk_end == vma.range.end()) << vma.range.ToString();
    if (!scan.ok()) continue;
    for (size_t i = 0; i < scan->count; ++i) {
      for (uint64_t at = regions[i].start; at < regions[i].end; at += kPage) candidates.insert(at);
    }
    for (const uint64_t page : candidates) {
      const auto got = memory->Read(base::RemoteAddress(page), real);
      if (!got.ok() || got->value() != kPage) continue;  // past the end of a file
      if (real != PageOf(process, vma, page)) different.push_back(page);
    }
  }
  return different;
}

Mover::Mover(MemoryActor& actor, DirtyTracker& tracker, PageSource& source)
    : actor_(actor), process_(actor.process()), tracker_(tracker), source_(source) {}

Mover::Round Mover::ScanAndSend(const std::function<void()>& between) {
  if (tracker_.needs_freeze()) {
    if (between) between();
    actor_.Freeze();
  }
  auto vmas = VmaList::Read(process_, with_flags_);
  EXPECT_TRUE(vmas.ok()) << vmas.status();
  if (between && !tracker_.needs_freeze()) between();
  auto dirty = tracker_.ScanAndReset(*vmas);
  if (tracker_.needs_freeze()) actor_.Thaw();
  EXPECT_TRUE(dirty.ok()) << dirty.status();
  if (!dirty.ok()) return {};
  Round round;
  round.pages_sent = Send(*vmas, *dirty);
  round.dirty = *std::move(dirty);
  return round;
}

std::vector<uint64_t> Mover::Finish() {
  actor_.Freeze();
  auto vmas = VmaList::Read(process_, with_flags_);
  EXPECT_TRUE(vmas.ok()) << vmas.status();
  auto dirty = tracker_.FinalScan(*vmas);
  EXPECT_TRUE(dirty.ok()) << dirty.status();
  if (dirty.ok()) Send(*vmas, *dirty);
  std::vector<uint64_t> differences = mirror_.Differences(process_, *vmas);
  actor_.Thaw();
  return differences;
}

uint64_t Mover::Send(const VmaList& vmas, const DirtySet& dirty) {
  mirror_.Apply(DiffLayout(layout_, vmas));
  layout_ = vmas;
  mirror_.Drop(dirty.drop);
  std::vector<Extent> wanted = dirty.pages.extents();
  const base::UniqueFd file(::memfd_create("pages", MFD_CLOEXEC));
  uint64_t sent = 0;
  size_t first = 0;
  std::vector<std::byte> bytes;
  while (first < wanted.size()) {
    auto fetched = source_.Fetch(std::span<const Extent>(wanted).subspan(first));
    EXPECT_TRUE(fetched.ok()) << fetched.status();
    if (!fetched.ok() || fetched->consumed == base::PageCount(0)) {
      ADD_FAILURE() << "no progress";
      return sent;
    }
    uint64_t size = 0;
    for (const Extent& extent : fetched->fetched) size += extent.size().value();
    ::lseek(file.get(), 0, SEEK_SET);
    const absl::Status pushed = source_.PushTo(file.get());
    EXPECT_TRUE(pushed.ok()) << pushed;
    bytes.resize(size);
    EXPECT_EQ(::pread(file.get(), bytes.data(), size, 0), static_cast<ssize_t>(size));
    mirror_.Store(fetched->fetched, bytes);
    sent += size / kPage;
    for (base::ByteCount left = base::ToBytes(fetched->consumed); left > base::ByteCount(0);) {
      Extent& extent = wanted[first];
      const base::ByteCount part = std::min(left, extent.size());
      extent =
          base::AddressRange::FromOrdered((extent.start() + part).value(), extent.end().value());
      if (extent.empty()) ++first;
      left -= part;
    }
  }
  return sent;
}

kernel::Userfaultfd UserfaultfdOf(MemoryActor& actor) {
  const int64_t remote = actor.Syscall(SYS_userfaultfd, {O_CLOEXEC | O_NONBLOCK});
  EXPECT_GE(remote, 0);
  auto fd = actor.process().GetDescriptor(static_cast<int>(remote));
  EXPECT_TRUE(fd.ok()) << fd.status();
  actor.Syscall(SYS_close, {static_cast<uint64_t>(remote)});
  return kernel::Userfaultfd(*std::move(fd));
}

}  // namespace predump::pagemap
