// Takes everything for dirty, every time: correct on any kernel, touches nothing in the target,
// converges never. For tests, and as the last resort.
#ifndef PREDUMP_PAGEMAP_FULL_TRACKER_H_
#define PREDUMP_PAGEMAP_FULL_TRACKER_H_

#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "src/base/units.h"
#include "src/kernel/process.h"
#include "src/pagemap/dirty_tracker.h"
#include "src/pagemap/extent.h"
#include "src/pagemap/page_scanner.h"
#include "src/pagemap/vma.h"

namespace predump::pagemap {

class FullTracker final : public DirtyTracker {
 public:
  // `process` outlives the tracker. Errors: TargetExited; else from open(2).
  static absl::StatusOr<std::unique_ptr<FullTracker>> Create(
      const kernel::ProcessHandle& process,
      PageScanner::Method method = PageScanner::Method::kScan);

  absl::string_view name() const override { return "full"; }
  bool needs_freeze() const override { return false; }
  absl::StatusOr<DirtySet> ScanAndReset(const VmaList& vmas) override;
  absl::StatusOr<DirtySet> FinalScan(const VmaList& vmas) override;
  base::PageCount owed() const override { return held_.pages(); }
  // It is what this tracker does, not an exception from it.
  const std::vector<FullResend>& full_resends() const override { return full_resends_; }
  absl::Status Disarm() override { return absl::OkStatus(); }

 private:
  FullTracker(const kernel::ProcessHandle& process, PageScanner scanner)
      : process_(process), scanner_(std::move(scanner)) {}

  absl::StatusOr<DirtySet> Scan(const VmaList& vmas, WalkPace pace);

  const kernel::ProcessHandle& process_;
  PageScanner scanner_;
  ExtentSet held_;  // what the target may hold data for
  const std::vector<FullResend> full_resends_;
};

}  // namespace predump::pagemap

#endif  // PREDUMP_PAGEMAP_FULL_TRACKER_H_
