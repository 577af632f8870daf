#include "src/pagemap/page_scanner.h"

#include <unistd.h>

#include <algorithm>
#include <span>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/base/mapped_region.h"

namespace predump::pagemap {
namespace {

using base::AddressRange;
using base::ByteCount;
using base::PageCount;
using base::RemoteAddress;
using kernel::kPageIsFile;
using kernel::kPageIsPfnZero;
using kernel::kPageIsPresent;
using kernel::kPageIsSoftDirty;
using kernel::kPageIsSwapped;
using kernel::kPageIsWritten;
using kernel::PageRegion;
using kernel::ScanRequest;

constexpr uint64_t kPopulated = kPageIsPresent | kPageIsSwapped;

// Protecting 4 GiB under one hold of the memory lock stalls the target 20 to 35 ms, 64 MiB at a
// time at most 0.14 ms (DESIGN 12.12).
constexpr uint64_t kStepBytes = 64ull << 20;
constexpr uint64_t kMostSteps = 1024;

constexpr size_t kRegionsPerCall = 8192;

// One more call costs about as much as walking this many pages.
constexpr uint64_t kClusterGapPages = 512;
constexpr uint64_t kFileClusterGapPages = 64;

uint64_t ClassificationMask(Backing backing) {
  return kPopulated | kPageIsPfnZero | (backing == Backing::kFile ? kPageIsFile : 0);
}

bool IsData(uint64_t categories) {
  return (categories & kPopulated) != 0 && (categories & (kPageIsPfnZero | kPageIsFile)) == 0;
}

uint64_t FlagsOf(Protection protection) {
  switch (protection) {
    case Protection::kIgnore:
      return 0;
    case Protection::kCheck:
      return kernel::kScanCheckWpAsync;
    case Protection::kReset:
      break;
  }
  return kernel::kScanCheckWpAsync | kernel::kScanWpMatching;
}

Extent ToExtent(const PageRegion& region) {
  return AddressRange::FromOrdered(region.start, region.end);
}

// What an entry of pagemap says.
enum class Content { kEmpty, kData, kWrittenData };

Content ContentOf(uint64_t entry, Backing backing, uint64_t zero_frame) {
  const bool present = (entry & kernel::kPagemapPresent) != 0;
  if (!present && (entry & kernel::kPagemapSwapped) == 0) return Content::kEmpty;
  if ((entry & kernel::kPagemapFileOrShared) != 0) {
    // In anonymous memory that is the huge zero page, or something nobody here knows.
    return backing == Backing::kFile ? Content::kEmpty : Content::kWrittenData;
  }
  if (present && zero_frame != 0 && (entry & kernel::kPagemapFrame) == zero_frame) {
    return Content::kEmpty;
  }
  if ((entry & kernel::kPagemapSoftDirty) != 0) return Content::kWrittenData;
  // The zero page is mapped many times and never marked: one that came after a discard would look
  // like the unwritten page that was there before.
  if (present && (entry & kernel::kPagemapExclusive) == 0) return Content::kWrittenData;
  return Content::kData;
}

// The frame of the zero page, as our own page table tells: 0 without CAP_SYS_ADMIN.
absl::StatusOr<uint64_t> FindZeroFrame() {
  PREDUMP_ASSIGN_OR_RETURN(const kernel::ProcessHandle self,
                           kernel::ProcessHandle::Open(::getpid()));
  PREDUMP_ASSIGN_OR_RETURN(const kernel::PagemapFile pagemap, kernel::PagemapFile::Open(self));
  PREDUMP_ASSIGN_OR_RETURN(const base::MappedRegion page,
                           base::MappedRegion::Anonymous(base::PageSize()));
  static_cast<void>(*const_cast<const volatile std::byte*>(page.data()));  // maps the zero page
  const uint64_t address = reinterpret_cast<uint64_t>(page.data());
  uint64_t entry = 0;
  PREDUMP_RETURN_IF_ERROR(pagemap.ReadEntries(
      AddressRange::FromOrdered(address, address + page.size()), std::span(&entry, 1)));
  const bool is_zero_page =
      (entry & kernel::kPagemapPresent) != 0 && (entry & kernel::kPagemapExclusive) == 0;
  return is_zero_page ? entry & kernel::kPagemapFrame : 0;
}

ExtentSet DataOf(const std::vector<PageRegion>& regions) {
  ExtentSet data;
  for (const PageRegion& region : regions) {
    if (IsData(region.categories)) data.Add(ToExtent(region));
  }
  return data;
}

}  // namespace

ByteCount StepSize(ByteCount size) {
  const uint64_t steps = std::max<uint64_t>(1, size.value() / kStepBytes / kMostSteps);
  return ByteCount(steps * kStepBytes);
}

PageScanner::PageScanner(kernel::PagemapFile pagemap, Method method, uint64_t zero_frame)
    : pagemap_(std::move(pagemap)),
      method_(method),
      zero_frame_(zero_frame),
      buffer_(kRegionsPerCall) {}

absl::StatusOr<PageScanner> PageScanner::Open(const kernel::ProcessHandle& process, Method method) {
  PREDUMP_ASSIGN_OR_RETURN(kernel::PagemapFile pagemap, kernel::PagemapFile::Open(process));
  uint64_t zero_frame = 0;
  if (method == Method::kEntries) {
    PREDUMP_ASSIGN_OR_RETURN(zero_frame, FindZeroFrame());
  }
  return PageScanner(std::move(pagemap), method, zero_frame);
}

absl::StatusOr<bool> PageScanner::Walk(ScanRequest request, WalkPace pace) {
  const RemoteAddress end = request.range.end();
  const uint64_t step = StepSize(request.range.size()).value();
  const bool resets = (request.flags & kernel::kScanWpMatching) != 0;
  // A larger step must not protect more at once than a small one does.
  if (resets && pace == WalkPace::kInSteps) request.max_pages = kStepBytes / base::PageSize();
  if ((request.return_mask & kPageIsFile) != 0) {
    statistics_.pages_asked_for_file += request.range.pages();
  }
  RemoteAddress at = request.range.start();
  while (at < end) {
    uint64_t stop = end.value();
    if (pace == WalkPace::kInSteps) {
      // Steps end at multiples of their size: none cuts a huge page, which would be split.
      stop = std::min(stop, (at.value() / step + 1) * step);
    }
    request.range = AddressRange::FromOrdered(at.value(), stop);
    PREDUMP_ASSIGN_OR_RETURN(const kernel::ScanResult result, pagemap_.Scan(request, buffer_));
    if (result.refused_errno != 0) return false;
    if (result.walk_end <= at) {
      return absl::InternalError(
          absl::StrCat("PAGEMAP_SCAN made no progress at ", request.range.ToString()));
    }
    PageCount found;
    for (size_t i = 0; i < result.count; ++i) {
      regions_.push_back(buffer_[i]);
      found += ToExtent(buffer_[i]).pages();
    }
    if (resets) {
      statistics_.most_pages_in_one_reset = std::max(statistics_.most_pages_in_one_reset, found);
    }
    at = result.walk_end;
  }
  return true;
}

ExtentSet PageScanner::RegionsAsExtents() const {
  ExtentSet set;
  for (const PageRegion& region : regions_) set.Add(ToExtent(region));
  return set;
}

absl::StatusOr<PageScanner::Result> PageScanner::Written(AddressRange range, Protection protection,
                                                         WalkPace pace) {
  regions_.clear();
  PREDUMP_ASSIGN_OR_RETURN(const bool done, Walk({.range = range,
                                                  .flags = FlagsOf(protection),
                                                  .category_mask = kPageIsWritten,
                                                  .return_mask = kPageIsWritten},
                                                 pace));
  if (!done) return Result{.pages = {}, .refused = true};
  return Result{.pages = RegionsAsExtents(), .refused = false};
}

absl::StatusOr<ExtentSet> PageScanner::Holes(const ExtentSet& pages, WalkPace pace) {
  regions_.clear();
  PREDUMP_RETURN_IF_ERROR(WalkClusters(pages,
                                       {.range = {},
                                        .category_inverted = kPopulated,
                                        .category_mask = kPageIsWritten | kPopulated,
                                        .return_mask = kPageIsWritten},
                                       pace));
  return pages.Intersection(RegionsAsExtents());
}

absl::StatusOr<bool> PageScanner::IsArmed(RemoteAddress address) {
  regions_.clear();
  return Walk(
      {.range = AddressRange::FromOrdered(address.value(), address.value() + base::PageSize()),
       .flags = kernel::kScanCheckWpAsync,
       .category_mask = kPageIsWritten,
       .return_mask = kPageIsWritten},
      WalkPace::kWhole);
}

absl::StatusOr<PageScanner::ContentsResult> PageScanner::ResetAndClassify(AddressRange range,
                                                                          Backing backing,
                                                                          bool written_only) {
  regions_.clear();
  // Few pages of a file mapping are written in a round: which ones are the file's own is asked
  // afterwards, for those alone.
  const bool ask_later = backing == Backing::kFile && written_only;
  PREDUMP_ASSIGN_OR_RETURN(
      const bool done,
      Walk({.range = range,
            .flags = FlagsOf(Protection::kReset),
            .category_mask = written_only ? kPageIsWritten : 0,
            .category_anyof_mask = kPopulated,
            .return_mask = ask_later ? kPageIsWritten : ClassificationMask(backing)},
           WalkPace::kInSteps));
  ContentsResult result;
  result.refused = !done;
  if (!done) return result;
  if (ask_later) {
    PREDUMP_ASSIGN_OR_RETURN(result.contents,
                             Classify(RegionsAsExtents(), backing, WalkPace::kInSteps));
    return result;
  }
  result.contents.data = DataOf(regions_);
  if (written_only) {
    result.contents.empty = RegionsAsExtents();
  } else {
    result.contents.empty.Add(range);
  }
  result.contents.empty.Subtract(result.contents.data);
  return result;
}

absl::Status PageScanner::WalkClusters(const ExtentSet& pages, ScanRequest request, WalkPace pace) {
  const bool asks_for_file = (request.return_mask & kPageIsFile) != 0;
  const ByteCount gap =
      base::ToBytes(PageCount(asks_for_file ? kFileClusterGapPages : kClusterGapPages));
  const std::vector<Extent>& extents = pages.extents();
  for (size_t i = 0; i < extents.size();) {
    size_t last = i;
    while (last + 1 < extents.size() && extents[last + 1].start() - extents[last].end() <= gap) {
      ++last;
    }
    request.range =
        AddressRange::FromOrdered(extents[i].start().value(), extents[last].end().value());
    PREDUMP_RETURN_IF_ERROR(Walk(request, pace));
    i = last + 1;
  }
  return absl::OkStatus();
}

absl::StatusOr<ExtentSet> PageScanner::DataByEntries(const ExtentSet& pages, Backing backing) {
  std::vector<Extent> data;
  std::vector<uint64_t> entries(kRegionsPerCall);
  const uint64_t page = base::PageSize();
  for (const Extent& extent : pages.extents()) {
    for (uint64_t at = extent.start().value(); at < extent.end().value();) {
      PREDUMP_ASSIGN_OR_RETURN(
          const size_t count,
          pagemap_.ReadEntries(AddressRange::FromOrdered(at, extent.end().value()), entries));
      if (count == 0) break;  // past the end of the address space: nothing there
      for (size_t i = 0; i < count; ++i, at += page) {
        const bool populated =
            (entries[i] & (kernel::kPagemapPresent | kernel::kPagemapSwapped)) != 0;
        const bool clean_file =
            backing == Backing::kFile && (entries[i] & kernel::kPagemapFileOrShared) != 0;
        if (populated && !clean_file) data.push_back(AddressRange::FromOrdered(at, at + page));
      }
    }
  }
  return ExtentSet::FromUnsorted(std::move(data));
}

absl::StatusOr<PageContents> PageScanner::Classify(const ExtentSet& pages, Backing backing,
                                                   WalkPace pace) {
  PageContents contents;
  if (method_ == Method::kEntries) {
    PREDUMP_ASSIGN_OR_RETURN(contents.data, DataByEntries(pages, backing));
  } else {
    regions_.clear();
    PREDUMP_RETURN_IF_ERROR(WalkClusters(pages,
                                         {.range = {},
                                          .category_anyof_mask = kPopulated,
                                          .return_mask = ClassificationMask(backing)},
                                         pace));
    contents.data = pages.Intersection(DataOf(regions_));
  }
  contents.empty = pages;
  contents.empty.Subtract(contents.data);
  return contents;
}

absl::StatusOr<PageScanner::Marked> PageScanner::MarkedByEntries(AddressRange range,
                                                                 Backing backing) {
  Marked marked;
  std::vector<uint64_t> entries(kRegionsPerCall);
  const uint64_t page = base::PageSize();
  for (uint64_t at = range.start().value(); at < range.end().value();) {
    PREDUMP_ASSIGN_OR_RETURN(
        const size_t count,
        pagemap_.ReadEntries(AddressRange::FromOrdered(at, range.end().value()), entries));
    if (count == 0) break;  // past the end of the address space: nothing there
    for (size_t i = 0; i < count; ++i, at += page) {
      const Content content = ContentOf(entries[i], backing, zero_frame_);
      if (content == Content::kEmpty) continue;
      marked.contents.data.Add(AddressRange::FromOrdered(at, at + page));
      if (content == Content::kWrittenData) {
        marked.written.Add(AddressRange::FromOrdered(at, at + page));
      }
    }
  }
  return marked;
}

absl::StatusOr<PageScanner::Marked> PageScanner::ClassifyMarked(AddressRange range,
                                                                Backing backing) {
  Marked marked;
  if (method_ == Method::kEntries) {
    PREDUMP_ASSIGN_OR_RETURN(marked, MarkedByEntries(range, backing));
  } else {
    // The target stands still for this, and most of its memory is data without a mark. To report
    // that takes the kernel longer than to look at it: it is asked for everything else.
    regions_.clear();
    const uint64_t mask = ClassificationMask(backing) | kPageIsSoftDirty;
    PREDUMP_RETURN_IF_ERROR(Walk({.range = range,
                                  .category_inverted = kPageIsPresent,
                                  .category_anyof_mask = mask & ~kPageIsSwapped,
                                  .return_mask = mask},
                                 WalkPace::kWhole));
    marked.contents.data.Add(range);
    ExtentSet empty;
    for (const PageRegion& region : regions_) {
      if (!IsData(region.categories)) {
        empty.Add(ToExtent(region));
      } else if ((region.categories & kPageIsSoftDirty) != 0) {
        marked.written.Add(ToExtent(region));
      }
    }
    marked.contents.data.Subtract(empty);
    marked.contents.empty = std::move(empty);
    return marked;
  }
  marked.contents.empty.Add(range);
  marked.contents.empty.Subtract(marked.contents.data);
  return marked;
}

absl::StatusOr<uint64_t> PageScanner::Entry(RemoteAddress page) const {
  uint64_t entry = 0;
  PREDUMP_RETURN_IF_ERROR(
      pagemap_.ReadEntries(AddressRange::FromOrdered(page.value(), page.value() + base::PageSize()),
                           std::span(&entry, 1)));
  return entry;
}

absl::StatusOr<ExtentSet> PageScanner::Swapped(const ExtentSet& pages) {
  regions_.clear();
  PREDUMP_RETURN_IF_ERROR(WalkClusters(
      pages, {.range = {}, .category_mask = kPageIsSwapped, .return_mask = kPageIsSwapped},
      WalkPace::kWhole));
  return pages.Intersection(RegionsAsExtents());
}

}  // namespace predump::pagemap
