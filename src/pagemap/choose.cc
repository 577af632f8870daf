#include "src/pagemap/choose.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace predump::pagemap {
namespace {

using kernel::Capability;
using kernel::CapabilityResult;

// One way of doing it, best first.
struct Candidate {
  absl::string_view name;
  std::vector<Capability> needs;
  absl::string_view merit;  // why it is preferred to what follows
};

std::vector<Candidate> Trackers() {
  return {
      {"uffd-wp",
       {Capability::kUffdWpAsync, Capability::kPagemapScan, Capability::kPidfdGetfd},
       "finds written pages without stopping the process"},
      {"soft-dirty", {Capability::kSoftDirty}, "finds written pages under a short freeze"},
      {"full", {}, "sends all of the memory in every round"},
  };
}

std::vector<Candidate> Sources() {
  return {
      {"process_vmsplice",
       {Capability::kProcessVmsplice},
       "copies nothing and needs no helper in the process"},
      {"helper",
       {Capability::kVmspliceSharesPages, Capability::kPidfdGetfd, Capability::kCloseRangeUnshare},
       "copies nothing on this host"},
      {"readv", {Capability::kProcessVmReadv}, "copies each page once"},
  };
}

// What of `needs` is not there, as "name (reason)"; empty when all is.
std::string Missing(const Candidate& candidate, std::span<const CapabilityResult> capabilities) {
  std::vector<std::string> missing;
  for (const Capability need : candidate.needs) {
    const auto found =
        std::find_if(capabilities.begin(), capabilities.end(),
                     [&](const CapabilityResult& c) { return c.capability == need; });
    if (found == capabilities.end()) {
      missing.push_back("a kernel feature that was not probed");
    } else if (!found->available) {
      missing.push_back(absl::StrCat(found->name, " (", found->reason, ")"));
    }
  }
  return absl::StrJoin(missing, ", ");
}

absl::StatusOr<Choice> ChooseByName(absl::string_view what, absl::string_view requested,
                                    const std::vector<Candidate>& candidates,
                                    std::span<const CapabilityResult> capabilities) {
  std::vector<absl::string_view> names = {"auto"};
  for (const Candidate& candidate : candidates) {
    names.push_back(candidate.name);
    if (candidate.name != requested) continue;
    if (const std::string missing = Missing(candidate, capabilities); !missing.empty()) {
      return absl::UnimplementedError(
          absl::StrCat(what, " ", requested, ": this kernel lacks ", missing));
    }
    return Choice{std::string(requested), "asked for"};
  }
  return absl::InvalidArgumentError(absl::StrCat("unknown ", what, " \"", requested,
                                                 "\"; it is one of ", absl::StrJoin(names, ", ")));
}

absl::StatusOr<Choice> ChooseBest(absl::string_view what, std::span<const Candidate> candidates,
                                  std::span<const CapabilityResult> capabilities,
                                  std::vector<std::string> passed_over = {}) {
  for (const Candidate& candidate : candidates) {
    const std::string missing = Missing(candidate, capabilities);
    if (missing.empty()) {
      std::string reason(candidate.merit);
      if (!passed_over.empty()) absl::StrAppend(&reason, "; ", absl::StrJoin(passed_over, "; "));
      return Choice{std::string(candidate.name), std::move(reason)};
    }
    passed_over.push_back(absl::StrCat("no ", candidate.name, ": the kernel lacks ", missing));
  }
  return absl::UnimplementedError(
      absl::StrCat("no ", what, " works here: ", absl::StrJoin(passed_over, "; ")));
}

absl::StatusOr<Choice> Choose(absl::string_view what, absl::string_view requested,
                              const std::vector<Candidate>& candidates,
                              std::span<const CapabilityResult> capabilities) {
  return requested == "auto" ? ChooseBest(what, candidates, capabilities)
                             : ChooseByName(what, requested, candidates, capabilities);
}

absl::StatusOr<Choice> ChooseAfter(absl::string_view what, absl::string_view refused,
                                   absl::string_view why, std::span<const Candidate> candidates,
                                   std::span<const CapabilityResult> capabilities) {
  const auto at = std::find_if(candidates.begin(), candidates.end(),
                               [&](const Candidate& c) { return c.name == refused; });
  return ChooseBest(what, {at == candidates.end() ? at : at + 1, candidates.end()}, capabilities,
                    {absl::StrCat("no ", refused, ": ", why)});
}

}  // namespace

absl::StatusOr<Choice> ChooseTracker(absl::string_view requested,
                                     std::span<const CapabilityResult> capabilities) {
  return Choose("tracker", requested, Trackers(), capabilities);
}

absl::StatusOr<Choice> ChooseSource(absl::string_view requested,
                                    std::span<const CapabilityResult> capabilities) {
  return Choose("source", requested, Sources(), capabilities);
}

absl::StatusOr<Choice> ChooseTrackerAfter(absl::string_view refused, absl::string_view why,
                                          std::span<const CapabilityResult> capabilities) {
  return ChooseAfter("tracker", refused, why, Trackers(), capabilities);
}

absl::StatusOr<Choice> ChooseSourceAfter(absl::string_view refused, absl::string_view why,
                                         std::span<const CapabilityResult> capabilities) {
  return ChooseAfter("source", refused, why, Sources(), capabilities);
}

}  // namespace predump::pagemap
