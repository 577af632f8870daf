// Tracker and page source of one migration: chosen, and set up with one stop of one thread where
// they need anything in the process.
#ifndef PREDUMP_PREDUMP_PAGE_TRACKING_H_
#define PREDUMP_PREDUMP_PAGE_TRACKING_H_

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "src/base/unique_fd.h"
#include "src/base/units.h"
#include "src/kernel/capabilities.h"
#include "src/kernel/process.h"
#include "src/kernel/setup_injection.h"
#include "src/pagemap/bpf_adapters.h"
#include "src/pagemap/choose.h"
#include "src/pagemap/dirty_tracker.h"
#include "src/pagemap/page_source.h"
#include "src/pagemap/vdso_pages.h"
#include "src/predump/migration.h"

namespace predump {

struct PageTracking {
  // Before the tracker, which uses it.
  std::unique_ptr<pagemap::InFlightReads> reads;  // null where they cannot be followed
  std::unique_ptr<pagemap::DirtyTracker> tracker;
  std::unique_ptr<pagemap::PageSource> source;
  std::string tracker_reason;
  std::string source_reason;
  kernel::SetupResult setup_result;  // what is left of it: how long it stopped what

  // Chooses by what the kernel can do and what was asked for. Adds the stop it takes to `stops`.
  // Errors: FailedPrecondition (asked for by name and not to be had), TargetExited.
  static absl::StatusOr<PageTracking> Arm(const kernel::ProcessHandle& process,
                                          const MigrationOptions& options,
                                          std::vector<StopReport>& stops);

  // Has both include the vDSO, which outlives them.
  void Include(pagemap::VdsoPages& vdso);

  // Takes both off a process that runs on. What cannot be taken off is logged.
  void TakeDown();

 private:
  absl::Status MakeTracker(const kernel::ProcessHandle& process, pagemap::Choice choice,
                           const MigrationOptions& options,
                           std::span<const kernel::CapabilityResult> capabilities,
                           kernel::SetupResult& setup);
  absl::Status MakeUffdWpTracker(const kernel::ProcessHandle& process,
                                 const MigrationOptions& options, base::UniqueFd userfaultfd);
};

// Memory of the process that is in use, resident or swapped: what the target will have to hold.
absl::StatusOr<base::ByteCount> ResidentMemory(const kernel::ProcessHandle& process);

}  // namespace predump

#endif  // PREDUMP_PREDUMP_PAGE_TRACKING_H_
