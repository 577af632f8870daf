// What belongs to the process as a whole: signal actions, timers, limits, addresses, clocks.
#ifndef PREDUMP_CHECKPOINT_PROCESS_CAPTURE_H_
#define PREDUMP_CHECKPOINT_PROCESS_CAPTURE_H_

#include "absl/status/status.h"
#include "proto/state.pb.h"
#include "src/kernel/bpf/task_capture.h"
#include "src/kernel/process.h"
#include "src/kernel/procfs.h"

namespace predump::checkpoint {

// The leader's task_core_entry: state, name, limits, signal actions; no pending signals.
absl::Status FillTask(const kernel::ProcessHandle& process, const kernel::TaskSnapshot& snapshot,
                      criu::task_core_entry& task);

// What is left of the three interval timers. `snapshot` is read anew where an alarm could have gone
// off since the first.
void FillTimers(const kernel::ProcessRecord& record, criu::task_timers_entry& timers);

// Addresses, auxiliary vector, dumpable; no mappings and no executable.
absl::Status FillMemoryAddresses(const kernel::ProcessHandle& process,
                                 const kernel::ProcessRecord& record, proto::ProcessState& state);

// Ids in the process tree, inventory, clocks as the process reads them now.
absl::Status FillIdentity(const kernel::ProcessHandle& process, const kernel::StatusFields& status,
                          const kernel::TaskSnapshot& snapshot, bool tcp_close,
                          proto::ProcessState& state);

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_PROCESS_CAPTURE_H_
