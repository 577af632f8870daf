// Finds written pages through asynchronous write protection (userfaultfd) and PAGEMAP_SCAN; the
// target is never stopped. DESIGN 5 has the rules, DESIGN 12 the facts 1-4 and 10-12 behind them.
//
// How a page is followed: a scan that resets write-protects the pages it reports. The first write
// to such a page lifts the protection, inside the kernel, and the next scan reports it. What was
// not protected (new pages, holes) counts as written from the start.
//
// I5 `held_` covers every page the target may hold data for, so dropping only what is in it drops
//    enough. I6 a mapping is scanned incrementally only if the scan itself found all of it armed.
// Thread rule: one thread at a time.
#ifndef PREDUMP_PAGEMAP_UFFD_WP_TRACKER_H_
#define PREDUMP_PAGEMAP_UFFD_WP_TRACKER_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "src/base/units.h"
#include "src/kernel/process.h"
#include "src/kernel/userfaultfd.h"
#include "src/pagemap/dirty_tracker.h"
#include "src/pagemap/extent.h"
#include "src/pagemap/in_flight_reads.h"
#include "src/pagemap/mapped_files.h"
#include "src/pagemap/page_scanner.h"
#include "src/pagemap/vma.h"

namespace predump::pagemap {

struct UffdWpOptions {
  // Reads that write past the tracker; null where they cannot be followed. Not owned.
  InFlightReads* reads = nullptr;
  // The target may read past the page tables (descriptors with O_DIRECT, on FUSE or on 9p). With no
  // `reads` the reset then needs a freeze, which waits for them.
  bool direct_io_possible = false;
};

class UffdWpTracker final : public DirtyTracker {
 public:
  // `uffd` is a fresh userfaultfd of `process` on which UFFDIO_API was not called yet; `process`
  // and `options.reads` outlive the tracker.
  // Errors: Unimplemented the kernel lacks WP_ASYNC or PAGEMAP_SCAN (6.7); TargetExited.
  static absl::StatusOr<std::unique_ptr<UffdWpTracker>> Create(const kernel::ProcessHandle& process,
                                                               kernel::Userfaultfd uffd,
                                                               const UffdWpOptions& options = {});

  // As Disarm().
  ~UffdWpTracker() override;

  absl::string_view name() const override { return "uffd-wp"; }
  bool needs_freeze() const override {
    return options_.reads == nullptr && options_.direct_io_possible;
  }
  absl::StatusOr<DirtySet> ScanAndReset(const VmaList& vmas) override;
  absl::StatusOr<DirtySet> FinalScan(const VmaList& vmas) override;
  base::PageCount owed() const override;
  const std::vector<FullResend>& full_resends() const override { return full_resends_; }
  absl::Status Disarm() override;

  struct Statistics {
    PageScanner::Statistics scanner;
    // Most bytes given up under one hold of the target's memory lock.
    base::ByteCount most_bytes_in_one_unregister;
  };
  Statistics statistics() const;

 private:
  enum class Armed {
    kBefore,  // since an earlier scan: incremental
    kNow,     // just armed: everything counts as written
    kNot,     // cannot be followed: everything counts as written, every time
  };

  UffdWpTracker(const kernel::ProcessHandle& process, kernel::Userfaultfd uffd, PageScanner scanner,
                MappedFiles files, const UffdWpOptions& options);

  absl::StatusOr<DirtySet> Scan(const VmaList& vmas, bool reset);
  // Ranges to be sent whatever the page tables say, and `held_` brought up to the new layout.
  ExtentSet ApplyLayout(const VmaList& vmas);

  // `armed_before`: mappings the scan before found armed.
  absl::StatusOr<PageContents> ResetAndScan(const Vma& vma,
                                            const std::vector<base::AddressRange>& armed_before);
  absl::StatusOr<PageContents> ScanFrozen(const Vma& vma);
  // Both: nothing where the mapping proved not to be armed.
  absl::StatusOr<std::optional<PageContents>> Incremental(const Vma& vma);
  absl::StatusOr<std::optional<PageContents>> IncrementalFrozen(const Vma& vma);
  // All that `vma` holds.
  absl::StatusOr<PageContents> WholeAndReset(const Vma& vma);
  absl::StatusOr<PageContents> Whole(const Vma& vma, WalkPace pace);
  absl::Status FindDiscardedFilePages(const Vma& vma, PageContents& contents);

  absl::StatusOr<Armed> EnsureArmed(const Vma& vma,
                                    const std::vector<base::AddressRange>& armed_before);
  absl::StatusOr<Armed> Arm(const Vma& vma);
  absl::Status UnregisterInSteps(const Vma& vma);
  void NoteFullResend(base::AddressRange range, absl::string_view reason);
  bool IsMergeable(const Vma& vma);

  const kernel::ProcessHandle& process_;
  std::optional<kernel::Userfaultfd> uffd_;  // nothing once disarmed
  PageScanner scanner_;
  MappedFiles files_;
  UffdWpOptions options_;

  VmaList layout_;                         // of the last scan
  std::vector<base::AddressRange> armed_;  // mappings the last reset left armed, ascending
  ExtentSet untracked_;                    // mappings the last reset could not arm
  ExtentSet held_;                         // see I5
  ExtentSet mergeable_;                    // seen with VM_MERGEABLE; kept for scans without flags
  ExtentSet in_flight_;                    // buffers of reads that overlapped the last reset
  ExtentSet resend_;                       // could be neither armed nor followed last time
  bool resend_everything_ = false;         // the last scan was cut short after resetting
  std::vector<FullResend> full_resends_;
  base::ByteCount most_bytes_in_one_unregister_;
};

}  // namespace predump::pagemap

#endif  // PREDUMP_PAGEMAP_UFFD_WP_TRACKER_H_
