// The comparison of --verify: every page of the frozen process against its copy at the target.
#ifndef PREDUMP_PREDUMP_MEMORY_COMPARISON_H_
#define PREDUMP_PREDUMP_MEMORY_COMPARISON_H_

#include <vector>

#include "absl/status/statusor.h"
#include "proto/session.pb.h"
#include "src/base/units.h"
#include "src/kernel/process.h"
#include "src/pagemap/vma.h"
#include "src/transport/control_channel.h"

namespace predump {

// Hashes all pages with data of a process that stands still, as messages for the target. The
// registered rseq areas of `state` count as zeros: the kernel writes there at every return to user
// space, on either host.
absl::StatusOr<std::vector<proto::Verify>> HashMemory(const kernel::ProcessHandle& process,
                                                      const pagemap::VmaList& vmas,
                                                      const proto::ProcessState& state);

// Returns how many pages were compared. DataLoss where any differ, with their addresses.
absl::StatusOr<base::PageCount> CompareAtTarget(transport::ControlChannel& control,
                                                const std::vector<proto::Verify>& hashes);

}  // namespace predump

#endif  // PREDUMP_PREDUMP_MEMORY_COMPARISON_H_
