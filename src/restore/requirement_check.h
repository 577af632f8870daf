// What a process takes from its host besides files and addresses: processors, numbers, rights.
//
// Thread rule: free functions; what they try, they try in a child or take back.
#ifndef PREDUMP_RESTORE_REQUIREMENT_CHECK_H_
#define PREDUMP_RESTORE_REQUIREMENT_CHECK_H_

#include "absl/status/status.h"
#include "proto/session.pb.h"
#include "src/restore/blockers.h"

namespace predump::restore::internal {

// oom_score_adj, affinity, process numbers (not those of a pid namespace of its own), capacities
// of pipes, files opened for writing. Errors only where the host cannot be asked.
absl::Status FindUnmetRequirements(const proto::Begin& begin, bool new_pid_namespace,
                                   Blockers& blockers);

}  // namespace predump::restore::internal

#endif  // PREDUMP_RESTORE_REQUIREMENT_CHECK_H_
