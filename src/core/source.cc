#include "src/core/source.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/kernel/capabilities.h"
#include "src/kernel/setup_injection.h"
#include "src/pagemap/choose.h"
#include "src/pagemap/helper_source.h"
#include "src/pagemap/process_vmsplice_source.h"
#include "src/pagemap/readv_source.h"

namespace predump::core {
namespace {

using kernel::Capability;

absl::StatusOr<pagemap::Choice> Choose(const std::string& requested) {
  std::vector<kernel::CapabilityResult> results;
  // Only what decides: each probe may fork.
  for (const Capability capability :
       {Capability::kPidfdGetfd, Capability::kProcessVmReadv, Capability::kVmspliceSharesPages,
        Capability::kProcessVmsplice, Capability::kCloseRangeUnshare}) {
    PREDUMP_ASSIGN_OR_RETURN(kernel::CapabilityResult result, kernel::Probe(capability));
    results.push_back(std::move(result));
  }
  return pagemap::ChooseSource(requested, results);
}

// The status tells why there is none.
absl::Status SetUpHelper(const kernel::ProcessHandle& process, absl::Duration timeout,
                         ChosenSource& chosen) {
  kernel::SetupRequest request;
  request.userfaultfd = false;
  request.timeout = timeout;
  PREDUMP_ASSIGN_OR_RETURN(kernel::SetupResult setup, kernel::InjectSetup(process, request));
  chosen.stopped = setup.stopped;
  if (!setup.helper.has_value()) return setup.helper_status;
  PREDUMP_ASSIGN_OR_RETURN(chosen.source,
                           pagemap::HelperSource::Create(process, *std::move(setup.helper)));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ChosenSource> ChooseAndSetUp(const kernel::ProcessHandle& process,
                                            const std::string& requested, absl::Duration timeout) {
  PREDUMP_ASSIGN_OR_RETURN(const pagemap::Choice choice, Choose(requested));
  ChosenSource chosen;
  chosen.reason = choice.reason;
  if (choice.name == "process_vmsplice") {
    PREDUMP_ASSIGN_OR_RETURN(chosen.source, pagemap::ProcessVmspliceSource::Create(process));
    return chosen;
  }
  if (choice.name == "helper") {
    const absl::Status status = SetUpHelper(process, timeout, chosen);
    if (status.ok()) return chosen;
    if (base::IsTargetExited(status)) return status;
    if (requested == "helper") return base::Annotate(status, "--source helper");
    chosen.reason = absl::StrCat("no helper: ", status.message());
  }
  PREDUMP_ASSIGN_OR_RETURN(chosen.source, pagemap::ReadvSource::Create(process));
  return chosen;
}

}  // namespace predump::core
