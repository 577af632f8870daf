// Finds written pages by the kernel's soft-dirty marks (CONFIG_MEM_SOFT_DIRTY). DESIGN 5.
//
// Looking and resetting are two steps here, and a write in between would be lost: both happen under
// one freeze. The memory is read after the thaw. Nothing is registered or injected in the target;
// after a reset the first write to each page costs it one page fault.
//
// What is reported: pages with a mark (new mappings are marked as a whole), pages that hold data
// and did not at the last scan, and what the marks cannot tell: tables that mremap moved as a whole
// (MovedTables), mergeable memory (KSM rebuilds page-table entries without the mark), and
// everything after somebody else reset the marks (ResetWitness). Pages are looked at one and all,
// not only the marked ones: what was sent and holds nothing any more has no mark to tell of it.
//
// I5 `held_` covers every page the target may hold data for. Thread rule: one thread at a time.
#ifndef PREDUMP_PAGEMAP_SOFT_DIRTY_TRACKER_H_
#define PREDUMP_PAGEMAP_SOFT_DIRTY_TRACKER_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "src/base/units.h"
#include "src/kernel/clear_refs.h"
#include "src/kernel/process.h"
#include "src/pagemap/dirty_tracker.h"
#include "src/pagemap/extent.h"
#include "src/pagemap/moved_tables.h"
#include "src/pagemap/page_scanner.h"
#include "src/pagemap/reset_witness.h"
#include "src/pagemap/vma.h"

namespace predump::pagemap {

class SoftDirtyTracker final : public DirtyTracker {
 public:
  // `process` outlives the tracker. The kernel must have been probed
  // (kernel::Capability::kSoftDirty; kPagemapScan for Method::kScan). Errors: TargetExited; else
  // from open(2).
  static absl::StatusOr<std::unique_ptr<SoftDirtyTracker>> Create(
      const kernel::ProcessHandle& process, PageScanner::Method method);

  absl::string_view name() const override { return "soft-dirty"; }
  bool needs_freeze() const override { return true; }
  absl::StatusOr<DirtySet> ScanAndReset(const VmaList& vmas) override;
  absl::StatusOr<DirtySet> FinalScan(const VmaList& vmas) override;
  base::PageCount owed() const override {
    return resend_everything_ ? held_.pages() : held_.Intersection(mergeable_).pages();
  }
  const std::vector<FullResend>& full_resends() const override { return full_resends_; }
  // Marks that nobody looks at do no harm.
  absl::Status Disarm() override { return absl::OkStatus(); }

 private:
  SoftDirtyTracker(const kernel::ProcessHandle& process, PageScanner scanner,
                   kernel::ClearRefs marks, ResetWitness witness)
      : process_(process),
        scanner_(std::move(scanner)),
        marks_(std::move(marks)),
        witness_(std::move(witness)) {}

  // What all private memory holds.
  struct Memory {
    ExtentSet data;
    ExtentSet unmarked;   // data without a mark
    ExtentSet mergeable;  // data in ranges that KSM may rewrite
    ExtentSet empty;
  };
  absl::StatusOr<Memory> Look(const VmaList& vmas);
  absl::StatusOr<DirtySet> Compare(const VmaList& vmas, const Memory& memory);
  // What was compared will be sent.
  void Commit(const VmaList& vmas, Memory memory);
  absl::StatusOr<DirtySet> TryScanAndReset(const VmaList& vmas);
  bool IsMergeable(const Vma& vma);

  const kernel::ProcessHandle& process_;
  PageScanner scanner_;
  kernel::ClearRefs marks_;
  ResetWitness witness_;
  MovedTables moved_;

  VmaList layout_;       // of the last scan that did not fail
  ExtentSet held_;       // see I5
  ExtentSet mergeable_;  // seen with VM_MERGEABLE; kept for scans without flags
  bool was_reset_ = false;
  bool resend_everything_ = false;  // the last scan failed, perhaps after the reset
  std::vector<FullResend> full_resends_;
};

}  // namespace predump::pagemap

#endif  // PREDUMP_PAGEMAP_SOFT_DIRTY_TRACKER_H_
