#include "src/predump/page_tracking.h"

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "spdlog/spdlog.h"
#include "src/base/errors.h"
#include "src/kernel/capabilities.h"
#include "src/kernel/procfs.h"
#include "src/kernel/setup_injection.h"
#include "src/pagemap/choose.h"
#include "src/pagemap/full_tracker.h"
#include "src/pagemap/helper_source.h"
#include "src/pagemap/process_vmsplice_source.h"
#include "src/pagemap/readv_source.h"
#include "src/pagemap/soft_dirty_tracker.h"
#include "src/pagemap/uffd_wp_tracker.h"

namespace predump {
namespace {

// Only what decides about trackers and sources: each probe may fork.
absl::StatusOr<std::vector<kernel::CapabilityResult>> ProbeWhatDecides() {
  std::vector<kernel::CapabilityResult> results;
  for (const kernel::Capability capability :
       {kernel::Capability::kUffdWpAsync, kernel::Capability::kPagemapScan,
        kernel::Capability::kSoftDirty, kernel::Capability::kPidfdGetfd,
        kernel::Capability::kProcessVmReadv, kernel::Capability::kVmspliceSharesPages,
        kernel::Capability::kProcessVmsplice, kernel::Capability::kCloseRangeUnshare}) {
    PREDUMP_ASSIGN_OR_RETURN(kernel::CapabilityResult result, kernel::Probe(capability));
    results.push_back(std::move(result));
  }
  return results;
}

bool IsAvailable(std::span<const kernel::CapabilityResult> capabilities,
                 kernel::Capability capability) {
  return std::any_of(capabilities.begin(), capabilities.end(), [&](const auto& result) {
    return result.capability == capability && result.available;
  });
}

absl::StatusOr<pagemap::Choice> Tracker(const MigrationOptions& options,
                                        std::span<const kernel::CapabilityResult> capabilities) {
  if (options.tracker == "auto" && options.before_criu() &&
      IsAvailable(capabilities, kernel::Capability::kSoftDirty)) {
    return pagemap::Choice{.name = "soft-dirty", .reason = "CRIU's dump goes on from its marks"};
  }
  return pagemap::ChooseTracker(options.tracker, capabilities);
}

// Whether `status`, which nothing in the process came of, may be answered by tracking without
// anything in the process.
bool CanDoWithoutSetup(const absl::Status& status, const MigrationOptions& options,
                       const pagemap::Choice& tracker,
                       std::span<const kernel::CapabilityResult> capabilities) {
  const bool soft_dirty =
      tracker.name == "soft-dirty" ||
      (options.tracker == "auto" && IsAvailable(capabilities, kernel::Capability::kSoftDirty));
  return soft_dirty && options.source != "helper" &&
         (absl::IsFailedPrecondition(status) || absl::IsUnimplemented(status));
}

absl::Status MakeSource(const kernel::ProcessHandle& process, pagemap::Choice choice,
                        const MigrationOptions& options,
                        std::span<const kernel::CapabilityResult> capabilities,
                        kernel::SetupResult& setup, PageTracking& tracking) {
  if (choice.name == "helper" && !setup.helper.has_value()) {
    if (options.source == "helper") {
      return base::Annotate(setup.helper_status, "--source helper");
    }
    PREDUMP_ASSIGN_OR_RETURN(
        choice, pagemap::ChooseSourceAfter("helper", setup.helper_status.message(), capabilities));
  }
  tracking.source_reason = choice.reason;
  if (choice.name == "process_vmsplice") {
    PREDUMP_ASSIGN_OR_RETURN(tracking.source, pagemap::ProcessVmspliceSource::Create(process));
  } else if (choice.name == "helper") {
    PREDUMP_ASSIGN_OR_RETURN(tracking.source,
                             pagemap::HelperSource::Create(process, *std::move(setup.helper)));
  } else {
    PREDUMP_ASSIGN_OR_RETURN(tracking.source, pagemap::ReadvSource::Create(process));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status PageTracking::MakeUffdWpTracker(const kernel::ProcessHandle& process,
                                             const MigrationOptions& options,
                                             base::UniqueFd userfaultfd) {
  if (options.use_bpf) {
    absl::StatusOr<kernel::ReadsInFlight> followed = kernel::ReadsInFlight::Create(process.pid());
    if (followed.ok()) {
      reads = std::make_unique<pagemap::BpfInFlightReads>(*std::move(followed));
    } else {
      spdlog::debug("reads in flight are not followed: {}",
                    std::string(followed.status().message()));
    }
  }
  pagemap::UffdWpOptions uffd;
  uffd.reads = reads.get();
  // A descriptor that bypasses the page tables may be opened at any time: where reads are not
  // followed, every reset waits for them under a short freeze.
  uffd.direct_io_possible = reads == nullptr;
  PREDUMP_ASSIGN_OR_RETURN(
      tracker,
      pagemap::UffdWpTracker::Create(process, kernel::Userfaultfd(std::move(userfaultfd)), uffd));
  return absl::OkStatus();
}

absl::Status PageTracking::MakeTracker(const kernel::ProcessHandle& process, pagemap::Choice choice,
                                       const MigrationOptions& options,
                                       std::span<const kernel::CapabilityResult> capabilities,
                                       kernel::SetupResult& setup) {
  if (choice.name == "uffd-wp" && !setup.userfaultfd.valid()) {
    if (options.tracker == "uffd-wp") {
      return base::Annotate(setup.userfaultfd_status, "--tracker uffd-wp");
    }
    PREDUMP_ASSIGN_OR_RETURN(
        choice,
        pagemap::ChooseTrackerAfter("uffd-wp", setup.userfaultfd_status.message(), capabilities));
  }
  tracker_reason = choice.reason;
  if (choice.name == "uffd-wp") {
    return MakeUffdWpTracker(process, options, std::move(setup.userfaultfd));
  }
  // CRIU before 4.0 knows a huge zero page for a page like others, and wants it in the parent of
  // its dump. Entries show that page as data, a scan does not.
  const pagemap::PageScanner::Method method =
      IsAvailable(capabilities, kernel::Capability::kPagemapScan) && !options.before_criu()
          ? pagemap::PageScanner::Method::kScan
          : pagemap::PageScanner::Method::kEntries;
  if (choice.name == "soft-dirty") {
    PREDUMP_ASSIGN_OR_RETURN(tracker, pagemap::SoftDirtyTracker::Create(process, method));
  } else {
    PREDUMP_ASSIGN_OR_RETURN(tracker, pagemap::FullTracker::Create(process, method));
  }
  return absl::OkStatus();
}

absl::StatusOr<PageTracking> PageTracking::Arm(const kernel::ProcessHandle& process,
                                               const MigrationOptions& options,
                                               std::vector<StopReport>& stops) {
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<kernel::CapabilityResult> capabilities,
                           ProbeWhatDecides());
  PREDUMP_ASSIGN_OR_RETURN(const pagemap::Choice tracker_choice, Tracker(options, capabilities));
  PREDUMP_ASSIGN_OR_RETURN(const pagemap::Choice source_choice,
                           pagemap::ChooseSource(options.source, capabilities));
  kernel::SetupRequest request;
  request.userfaultfd = tracker_choice.name == "uffd-wp";
  request.helper = source_choice.name == "helper";
  request.timeout = options.freeze_timeout;
  kernel::SetupResult setup;
  PageTracking tracking;
  if (request.userfaultfd || request.helper) {
    absl::StatusOr<kernel::SetupResult> injected = kernel::InjectSetup(process, request);
    if (injected.ok()) {
      setup = *std::move(injected);
      stops.push_back({"setup", setup.stopped});
    } else if (CanDoWithoutSetup(injected.status(), options, tracker_choice, capabilities)) {
      setup.userfaultfd_status = injected.status();
      setup.helper_status = injected.status();
    } else {
      return injected.status();
    }
  }
  PREDUMP_RETURN_IF_ERROR(
      tracking.MakeTracker(process, tracker_choice, options, capabilities, setup));
  PREDUMP_RETURN_IF_ERROR(
      MakeSource(process, source_choice, options, capabilities, setup, tracking));
  tracking.setup_result = std::move(setup);
  return tracking;
}

void PageTracking::Include(pagemap::VdsoPages& vdso) {
  tracker = std::make_unique<pagemap::TrackerWithVdso>(std::move(tracker), vdso);
  source = std::make_unique<pagemap::SourceWithVdso>(std::move(source), vdso);
}

void PageTracking::TakeDown() {
  for (const absl::Status& status : {source->Finish(), tracker->Disarm()}) {
    if (!status.ok() && !base::IsTargetExited(status)) {
      spdlog::warn("taking tracking off: {}", std::string(status.message()));
    }
  }
}

absl::StatusOr<base::ByteCount> ResidentMemory(const kernel::ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(const std::string status, kernel::ReadProcFile(process, "status"));
  uint64_t kib = 0;
  for (const absl::string_view line : absl::StrSplit(status, '\n')) {
    const std::vector<absl::string_view> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    uint64_t value = 0;
    if (words.size() < 2 || !absl::SimpleAtoi(words[1], &value)) continue;
    if (words[0] == "RssAnon:" || words[0] == "VmSwap:") kib += value;
  }
  return base::ByteCount(kib << 10);
}

}  // namespace predump
