#include "src/predump/page_tracking.h"

#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "spdlog/spdlog.h"
#include "src/base/errors.h"
#include "src/kernel/capabilities.h"
#include "src/kernel/procfs.h"
#include "src/kernel/setup_injection.h"
#include "src/pagemap/choose.h"
#include "src/pagemap/full_tracker.h"
#include "src/pagemap/helper_source.h"
#include "src/pagemap/readv_source.h"
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

absl::Status MakeSource(const kernel::ProcessHandle& process, const pagemap::Choice& choice,
                        const MigrationOptions& options, kernel::SetupResult& setup,
                        PageTracking& tracking) {
  if (choice.name == "helper" && setup.helper.has_value()) {
    PREDUMP_ASSIGN_OR_RETURN(tracking.source,
                             pagemap::HelperSource::Create(process, *std::move(setup.helper)));
    tracking.source_reason = choice.reason;
    return absl::OkStatus();
  }
  if (choice.name == "helper") {
    if (options.source == "helper") {
      return base::Annotate(setup.helper_status, "--source helper");
    }
    tracking.source_reason = absl::StrCat("no helper: ", setup.helper_status.message());
  } else {
    tracking.source_reason = choice.reason;
  }
  PREDUMP_ASSIGN_OR_RETURN(tracking.source, pagemap::ReadvSource::Create(process));
  return absl::OkStatus();
}

}  // namespace

absl::Status PageTracking::MakeTracker(const kernel::ProcessHandle& process,
                                       const pagemap::Choice& choice,
                                       const MigrationOptions& options,
                                       kernel::SetupResult& setup) {
  tracker_reason = choice.reason;
  if (choice.name == "uffd-wp" && setup.userfaultfd.valid()) {
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
    PREDUMP_ASSIGN_OR_RETURN(tracker,
                             pagemap::UffdWpTracker::Create(
                                 process, kernel::Userfaultfd(std::move(setup.userfaultfd)), uffd));
    return absl::OkStatus();
  }
  if (choice.name == "uffd-wp") {
    if (options.tracker == "uffd-wp") {
      return base::Annotate(setup.userfaultfd_status, "--tracker uffd-wp");
    }
    tracker_reason = absl::StrCat("no userfaultfd: ", setup.userfaultfd_status.message());
  }
  PREDUMP_ASSIGN_OR_RETURN(tracker, pagemap::FullTracker::Create(process));
  return absl::OkStatus();
}

absl::StatusOr<PageTracking> PageTracking::Arm(const kernel::ProcessHandle& process,
                                               const MigrationOptions& options) {
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<kernel::CapabilityResult> capabilities,
                           ProbeWhatDecides());
  PREDUMP_ASSIGN_OR_RETURN(const pagemap::Choice tracker_choice,
                           pagemap::ChooseTracker(options.tracker, capabilities));
  PREDUMP_ASSIGN_OR_RETURN(const pagemap::Choice source_choice,
                           pagemap::ChooseSource(options.source, capabilities));
  kernel::SetupRequest request;
  request.userfaultfd = tracker_choice.name == "uffd-wp";
  request.helper = source_choice.name == "helper";
  request.timeout = options.freeze_timeout;
  kernel::SetupResult setup;
  PageTracking tracking;
  if (request.userfaultfd || request.helper) {
    PREDUMP_ASSIGN_OR_RETURN(setup, kernel::InjectSetup(process, request));
  }
  PREDUMP_RETURN_IF_ERROR(tracking.MakeTracker(process, tracker_choice, options, setup));
  PREDUMP_RETURN_IF_ERROR(MakeSource(process, source_choice, options, setup, tracking));
  tracking.setup_result = std::move(setup);
  return tracking;
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
