// Finds the pages a process wrote since the last reset. DESIGN 5 is the contract behind this one.
//
// Invariants:
//  I1 Reset first, then read: bytes of a page reported in round k may only be read after the scan
//     of round k; a write after that scan is reported by round k+1.
//  I2 Nothing is lost: what a tracker is not sure of, it reports whole.
//  I3 Until Disarm or destruction the tracked process may run slower, never wrongly, but for what
//     DESIGN 5 names (mremap across an armed seam).
//  I4 The lists given to the scans, in their order, are those from which the target's layout is
//     derived (DiffLayout): what a step maps anew there is reported whole in the same scan.
// Thread rule: one thread at a time.
#ifndef PREDUMP_PAGEMAP_DIRTY_TRACKER_H_
#define PREDUMP_PAGEMAP_DIRTY_TRACKER_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "src/base/units.h"
#include "src/pagemap/extent.h"
#include "src/pagemap/vma.h"

namespace predump::pagemap {

// One scan. `drop` is to be applied at the target before `pages`.
struct DirtySet {
  ExtentSet pages;  // written and holding data: to be sent
  ExtentSet drop;   // contents gone at the source (or range unsure): to become empty at the target
};

// A range that a scan reported whole because its pages could not be told apart, and why.
struct FullResend {
  base::AddressRange range;  // empty: all of the memory
  std::string reason;        // one clause
};

class DirtyTracker {
 public:
  virtual ~DirtyTracker() = default;

  virtual absl::string_view name() const = 0;

  // Whether ScanAndReset needs the target frozen while it runs (soft-dirty: yes). A freeze also
  // waits for reads under way that write past the page tables (direct I/O).
  virtual bool needs_freeze() const = 0;

  // Finds and resets what was written since the last call; the first call reports all data. `vmas`
  // is the layout read just before. The target runs on unless needs_freeze().
  // Errors: TargetExited; Unimplemented when the kernel lacks what the tracker needs.
  virtual absl::StatusOr<DirtySet> ScanAndReset(const VmaList& vmas) = 0;

  // The same without reset, target frozen; `vmas` is the layout of the frozen target.
  virtual absl::StatusOr<DirtySet> FinalScan(const VmaList& vmas) = 0;

  // Pages that the next scan reports whatever is written until then: those the last ScanAndReset
  // could not follow or was not sure of. A freeze now would send them frozen.
  virtual base::PageCount owed() const { return base::PageCount(0); }

  // What the last scan reported whole. New mappings are not worth a mention.
  virtual const std::vector<FullResend>& full_resends() const = 0;

  // Takes tracking off a running target in pieces small enough not to be felt. Idempotent.
  virtual absl::Status Disarm() = 0;
};

}  // namespace predump::pagemap

#endif  // PREDUMP_PAGEMAP_DIRTY_TRACKER_H_
