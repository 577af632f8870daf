#include "src/core/page_copier.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/pagemap/copied_pages.h"

namespace predump::core {
namespace {

using base::AddressRange;
using pagemap::Extent;
using pagemap::ExtentSet;

// Those of `pages` in [start, end).
ExtentSet Between(const ExtentSet& pages, uint64_t start, uint64_t end) {
  ExtentSet window;
  window.Add(AddressRange::FromOrdered(start, end));
  return pages.Intersection(window);
}

// Cuts so many pages off the front of extents[*first...].
void Advance(std::vector<Extent>& extents, size_t& first, base::PageCount pages) {
  base::ByteCount left = base::ToBytes(pages);
  while (left > base::ByteCount(0) && first < extents.size()) {
    Extent& extent = extents[first];
    const base::ByteCount step = std::min(left, extent.size());
    extent = AddressRange::FromOrdered((extent.start() + step).value(), extent.end().value());
    if (extent.empty()) ++first;
    left -= step;
  }
}

}  // namespace

absl::Status PageCopier::Copy(const ExtentSet& pages, std::span<const MemoryCopy> copies) {
  uint64_t at = 0;
  for (const MemoryCopy& copy : copies) {
    PREDUMP_RETURN_IF_ERROR(CopyPages(Between(pages, at, copy.range.start().value())));
    const std::optional<Layout::Place> place = layout_.PlaceOf(copy.range.start());
    if (!place.has_value() || place->room < copy.range.size()) {
      return absl::InternalError(absl::StrCat("no place for ", copy.range.ToString()));
    }
    PREDUMP_RETURN_IF_ERROR(output_.Write(place->offset, copy.bytes));
    written_ += copy.range.pages();
    at = copy.range.end().value();
  }
  return CopyPages(Between(pages, at, ~uint64_t{0}));
}

absl::Status PageCopier::CopyPages(const ExtentSet& pages) {
  std::vector<Extent> left = pages.extents();
  const base::ByteCount most = std::min(base::ToBytes(source_.max_pages()), output_.max_bytes());
  for (size_t first = 0; first < left.size();) {
    if (IsCancelled(cancel_fd_)) return absl::CancelledError("cancelled");
    const std::vector<Extent> wanted =
        pagemap::FirstBytes(std::span<const Extent>(left).subspan(first), most);
    PREDUMP_ASSIGN_OR_RETURN(const pagemap::FetchResult result, source_.Fetch(wanted));
    if (result.consumed == base::PageCount(0)) {
      return absl::InternalError("the page source made no progress");
    }
    Advance(left, first, result.consumed);
    for (const Extent& extent : result.vanished) vanished_.Add(extent);
    if (result.fetched.empty()) continue;
    PREDUMP_RETURN_IF_ERROR(Place(result.fetched));
    PREDUMP_RETURN_IF_ERROR(output_.Take(source_, placements_));
    for (const Placement& placement : placements_) written_ += base::ToPages(placement.bytes);
  }
  return absl::OkStatus();
}

absl::Status PageCopier::Place(std::span<const Extent> fetched) {
  placements_.clear();
  for (Extent extent : fetched) {
    while (!extent.empty()) {
      const std::optional<Layout::Place> place = layout_.PlaceOf(extent.start());
      if (!place.has_value()) {
        return absl::InternalError(absl::StrCat("no place for ", extent.ToString()));
      }
      const base::ByteCount bytes = std::min(extent.size(), place->room);
      if (!placements_.empty() &&
          placements_.back().offset + placements_.back().bytes.value() == place->offset) {
        placements_.back().bytes += bytes;
      } else {
        placements_.push_back({place->offset, bytes});
      }
      extent = AddressRange::FromOrdered((extent.start() + bytes).value(), extent.end().value());
    }
  }
  return absl::OkStatus();
}

}  // namespace predump::core
