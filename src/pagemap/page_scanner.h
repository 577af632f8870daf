// What PAGEMAP_SCAN says about ranges of a process, as sets of pages.
//
// Shared by everything that looks for pages. It knows no layout: ranges may hold unmapped parts,
// which count as empty. Cost (DESIGN 12.10): asking which pages are backed by a file is five times
// dearer than the rest, so it is asked only for file mappings, and only where something is written.
// Thread rule: one thread at a time.
#ifndef PREDUMP_PAGEMAP_PAGE_SCANNER_H_
#define PREDUMP_PAGEMAP_PAGE_SCANNER_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "src/base/units.h"
#include "src/kernel/pagemap_scan.h"
#include "src/kernel/process.h"
#include "src/pagemap/extent.h"

namespace predump::pagemap {

// A range split by what its pages hold.
struct PageContents {
  // Present or swapped out; neither the zero page nor an unmodified page of a mapped file.
  ExtentSet data;
  // The rest: reads as zeros, or as what the mapped file holds.
  ExtentSet empty;
};

enum class Backing { kAnonymous, kFile };

// How a walk goes over a large range.
enum class WalkPace {
  kWhole,    // at once: for a frozen target, with the fewest calls
  kInSteps,  // 64 MiB at a time: a running target may map and unmap in between
};

// The two marks a write-protecting scan can leave or look for.
enum class Protection {
  kIgnore,  // whatever the range is registered with
  kCheck,   // refuse what is not armed
  kReset,   // refuse what is not armed; protect what is reported, in the same atomic step
};

// Bytes covered by one step in a mapping of `size`: 64 MiB, more in reservations past 64 GiB so
// that no mapping takes over a thousand steps.
base::ByteCount StepSize(base::ByteCount size);

class PageScanner {
 public:
  // How Classify and ClassifyMarked learn what a page holds. All else needs the scan.
  enum class Method {
    kScan,     // PAGEMAP_SCAN (Linux 6.7)
    kEntries,  // plain reads of /proc/PID/pagemap: any kernel; Classify takes the zero page for
               // data
  };
  // `process` outlives the scanner. Errors: TargetExited; else from open(2).
  static absl::StatusOr<PageScanner> Open(const kernel::ProcessHandle& process,
                                          Method method = Method::kScan);

  struct Result {
    ExtentSet pages;
    // Part of the range is not armed (kCheck, kReset). Pages before it may have been reset all the
    // same and `pages` does not tell which: nothing is known about the range (DESIGN 12.1).
    bool refused = false;
  };

  // Written since the last reset, holes included. The cheapest scan there is.
  absl::StatusOr<Result> Written(base::AddressRange range, Protection protection, WalkPace pace);
  // Those of `pages` that are written and neither present nor swapped out: discarded, or never
  // there.
  absl::StatusOr<ExtentSet> Holes(const ExtentSet& pages, WalkPace pace);
  // Whether the mapping at `address` is armed.
  absl::StatusOr<bool> IsArmed(base::RemoteAddress address);

  // Resets what holds anything (and was written, if `written_only`) and tells it apart. Otherwise
  // than in Classify, pages that hold nothing are in neither set where `written_only`.
  struct ContentsResult {
    PageContents contents;
    bool refused = false;
  };
  absl::StatusOr<ContentsResult> ResetAndClassify(base::AddressRange range, Backing backing,
                                                  bool written_only);

  // Splits `pages` by what they hold now.
  absl::StatusOr<PageContents> Classify(const ExtentSet& pages, Backing backing, WalkPace pace);

  // All of `range`, and which of its data is marked as written (soft-dirty), at once. Where entries
  // cannot tell a page of data from the zero page it counts as data that was written.
  struct Marked {
    PageContents contents;
    ExtentSet written;  // part of contents.data
  };
  absl::StatusOr<Marked> ClassifyMarked(base::AddressRange range, Backing backing);
  // The entry of one page (kernel::kPagemap...), 0 where nothing is mapped.
  absl::StatusOr<uint64_t> Entry(base::RemoteAddress page) const;

  // Pages swapped out among `pages` (or, in file mappings, marked where a page was discarded).
  absl::StatusOr<ExtentSet> Swapped(const ExtentSet& pages);

  struct Statistics {
    // Most pages protected under one hold of the target's memory lock.
    base::PageCount most_pages_in_one_reset;
    // Pages walked while asking for file backing.
    base::PageCount pages_asked_for_file;
  };
  const Statistics& statistics() const { return statistics_; }

 private:
  PageScanner(kernel::PagemapFile pagemap, Method method, uint64_t zero_frame);

  // Walks `request.range`, appending matching regions to `regions_`. False: refused.
  absl::StatusOr<bool> Walk(kernel::ScanRequest request, WalkPace pace);
  // Walks the clusters of `pages` whose gaps are cheaper to walk than to skip.
  absl::Status WalkClusters(const ExtentSet& pages, kernel::ScanRequest request, WalkPace pace);
  ExtentSet RegionsAsExtents() const;

  absl::StatusOr<ExtentSet> DataByEntries(const ExtentSet& pages, Backing backing);
  absl::StatusOr<Marked> MarkedByEntries(base::AddressRange range, Backing backing);

  kernel::PagemapFile pagemap_;
  Method method_;
  uint64_t zero_frame_ = 0;                  // of the kernel's zero page; 0: not to be known
  std::vector<kernel::PageRegion> buffer_;   // what one call fills
  std::vector<kernel::PageRegion> regions_;  // what one walk found
  Statistics statistics_;
};

}  // namespace predump::pagemap

#endif  // PREDUMP_PAGEMAP_PAGE_SCANNER_H_
