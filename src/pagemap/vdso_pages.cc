#include "src/pagemap/vdso_pages.h"

#include <fcntl.h>
#include <string.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/kernel/process_memory.h"
#include "src/kernel/vdso_padding.h"
#include "src/pagemap/copied_pages.h"

namespace predump::pagemap {
namespace {

using base::AddressRange;
using base::ByteCount;

ExtentSet VdsoOf(const VmaList& vmas) {
  ExtentSet range;
  for (const Vma& vma : vmas.vmas()) {
    if (vma.kind == VmaKind::kVdso) range.Add(vma.range);
  }
  return range;
}

ByteCount SizeOf(const ExtentSet& set) { return base::ToBytes(set.pages()); }

// What we, or an engine that was killed, have placed there is not the process's.
void WipeOurs(std::span<std::byte> image) {
  const absl::StatusOr<size_t> end = kernel::VdsoImageEnd(image);
  if (!end.ok() || *end > image.size()) return;
  const std::span<std::byte> padding = image.subspan(*end);
  if (padding.size() < sizeof kernel::kPaddingMagic ||
      ::memcmp(padding.data(), kernel::kPaddingMagic, sizeof kernel::kPaddingMagic) != 0) {
    return;
  }
  std::fill(padding.begin(), padding.end(), std::byte{0});
}

}  // namespace

absl::StatusOr<VdsoPages> VdsoPages::Copy(const kernel::ProcessHandle& process) {
  VdsoPages pages(process);
  PREDUMP_ASSIGN_OR_RETURN(const VmaList vmas, VmaList::Read(process, /*with_flags=*/false));
  PREDUMP_RETURN_IF_ERROR(pages.Read(VdsoOf(vmas)));
  return pages;
}

absl::Status VdsoPages::Read(ExtentSet range) {
  // Whatever its protection is.
  PREDUMP_ASSIGN_OR_RETURN(const kernel::ProcessMemory memory,
                           kernel::ProcessMemory::Open(*process_, O_RDONLY));
  std::vector<std::byte> bytes(SizeOf(range).value());
  size_t done = 0;
  for (const Extent& extent : range.extents()) {
    const size_t size = extent.size().value();
    PREDUMP_RETURN_IF_ERROR(
        memory.ReadExactly(extent.start(), std::span(bytes).subspan(done, size)));
    done += size;
  }
  WipeOurs(bytes);
  bytes_ = std::move(bytes);
  range_ = std::move(range);
  return absl::OkStatus();
}

absl::Status VdsoPages::Follow(const VmaList& vmas) {
  ExtentSet range = VdsoOf(vmas);
  if (range == range_) return absl::OkStatus();
  if (range.extents().size() != 1 || SizeOf(range).value() != bytes_.size()) {
    return Read(std::move(range));
  }
  range_ = std::move(range);
  return absl::OkStatus();
}

std::span<const std::byte> VdsoPages::BytesFrom(base::RemoteAddress page) const {
  uint64_t before = 0;
  for (const Extent& extent : range_.extents()) {
    if (extent.Contains(page)) {
      const uint64_t start = before + (page - extent.start()).value();
      return std::span(bytes_).subspan(start, (extent.end() - page).value());
    }
    before += extent.size().value();
  }
  return {};
}

absl::StatusOr<DirtySet> TrackerWithVdso::ScanAndReset(const VmaList& vmas) {
  PREDUMP_ASSIGN_OR_RETURN(DirtySet dirty, inner_->ScanAndReset(vmas));
  return Add(std::move(dirty), vmas);
}

absl::StatusOr<DirtySet> TrackerWithVdso::FinalScan(const VmaList& vmas) {
  PREDUMP_ASSIGN_OR_RETURN(DirtySet dirty, inner_->FinalScan(vmas));
  return Add(std::move(dirty), vmas);
}

absl::StatusOr<DirtySet> TrackerWithVdso::Add(DirtySet dirty, const VmaList& vmas) {
  PREDUMP_RETURN_IF_ERROR(vdso_.Follow(vmas));
  if (vdso_.range() == reported_) return dirty;
  // What is mapped there instead is reported whole: drops come first.
  dirty.drop.AddAll(reported_);
  dirty.pages.AddAll(vdso_.range());
  reported_ = vdso_.range();
  return dirty;
}

absl::StatusOr<FetchResult> SourceWithVdso::Fetch(std::span<const Extent> wanted) {
  if (held() > ByteCount(0)) {
    return absl::FailedPreconditionError("the pages fetched before were not pushed");
  }
  const auto overlaps = [this](const Extent& extent) { return vdso_.range().Overlaps(extent); };
  const auto first = std::find_if(wanted.begin(), wanted.end(), overlaps);
  if (first == wanted.end()) return inner_->Fetch(wanted);
  if (first != wanted.begin()) {
    return inner_->Fetch(wanted.first(static_cast<size_t>(first - wanted.begin())));
  }
  const Extent& extent = wanted.front();
  if (!vdso_.range().Contains(extent.start())) {
    // Something lies directly before it.
    for (const Extent& vdso : vdso_.range().extents()) {
      if (!vdso.Overlaps(extent)) continue;
      const Extent before = AddressRange::FromOrdered(extent.start().value(), vdso.start().value());
      return inner_->Fetch({&before, 1});
    }
  }
  const std::span<const std::byte> bytes = vdso_.BytesFrom(extent.start());
  const uint64_t size = std::min({static_cast<uint64_t>(bytes.size()), extent.size().value(),
                                  base::ToBytes(max_pages()).value()});
  copy_ = bytes.first(size);
  FetchResult result;
  result.fetched.push_back(
      AddressRange::FromOrdered(extent.start().value(), extent.start().value() + size));
  result.consumed = base::ToPages(ByteCount(size));
  return result;
}

absl::Status SourceWithVdso::Push(int out_fd, ByteCount bytes) {
  if (copy_.empty()) return inner_->Push(out_fd, bytes);
  const std::span<const std::byte> copy = std::exchange(copy_, {});
  if (bytes.value() > copy.size()) {
    return absl::FailedPreconditionError("more is to be pushed than was fetched");
  }
  PREDUMP_RETURN_IF_ERROR(WriteCopying(out_fd, copy.first(bytes.value())));
  copy_ = copy.subspan(bytes.value());
  return absl::OkStatus();
}

}  // namespace predump::pagemap
