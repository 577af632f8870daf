// Which tracker and which page source serve on this kernel, and why.
//
// Thread rule: pure functions of what was probed (kernel::ProbeAll).
#ifndef PREDUMP_PAGEMAP_CHOOSE_H_
#define PREDUMP_PAGEMAP_CHOOSE_H_

#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "src/kernel/capabilities.h"

namespace predump::pagemap {

struct Choice {
  std::string name;
  std::string reason;  // one clause, for the user: "asked for", "uffd-wp: kernel has ..."
};

// `requested`: "auto", "uffd-wp", "soft-dirty" or "full"; "auto" takes the first of them that
// works. Errors: InvalidArgument an unknown name; Unimplemented a known one that cannot work here,
// with what is missing.
absl::StatusOr<Choice> ChooseTracker(absl::string_view requested,
                                     std::span<const kernel::CapabilityResult> capabilities);

// `requested`: "auto", "process_vmsplice", "helper" or "readv"; otherwise as above.
absl::StatusOr<Choice> ChooseSource(absl::string_view requested,
                                    std::span<const kernel::CapabilityResult> capabilities);

// The kernel has what `refused` needs, but this process did not let it be set up (no userfaultfd
// for it, no room for a helper): `why`. The best of those that come after it.
absl::StatusOr<Choice> ChooseTrackerAfter(absl::string_view refused, absl::string_view why,
                                          std::span<const kernel::CapabilityResult> capabilities);
absl::StatusOr<Choice> ChooseSourceAfter(absl::string_view refused, absl::string_view why,
                                         std::span<const kernel::CapabilityResult> capabilities);

}  // namespace predump::pagemap

#endif  // PREDUMP_PAGEMAP_CHOOSE_H_
