// What belongs to the process as a whole: signal actions, timers, limits, addresses, clocks.
#ifndef PREDUMP_CHECKPOINT_PROCESS_CAPTURE_H_
#define PREDUMP_CHECKPOINT_PROCESS_CAPTURE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/state.pb.h"
#include "src/checkpoint/capture_instant.h"
#include "src/kernel/bpf/task_capture.h"
#include "src/kernel/process.h"
#include "src/kernel/procfs.h"
#include "src/kernel/time_offsets.h"

namespace predump::checkpoint {

// What cannot change while a migration goes on, read before the freeze.
struct LastingFacts {
  kernel::TimeOffsets clock_offsets;      // of the process
  kernel::TimeOffsets our_clock_offsets;  // of this program
  uint32_t login_uid = 0xffffffff;        // unset
};
absl::StatusOr<LastingFacts> ReadLastingFacts(const kernel::ProcessHandle& process);

// The leader's task_core_entry: state, name, limits, signal actions; no pending signals.
void FillTask(const LastingFacts& facts, const kernel::TaskSnapshot& snapshot,
              criu::task_core_entry& task);

// What was left of the three interval timers at the instant.
void FillTimers(const kernel::ProcessRecord& record, const CaptureInstant& instant,
                criu::task_timers_entry& timers);

// For a process with an alarm of ITIMER_REAL pending: a periodic timer that has gone off is armed
// again only when its signal is taken, and has an interval but no time left until then.
void FillWaitingTimer(const kernel::ProcessRecord& record, criu::task_timers_entry& timers);

// Addresses, auxiliary vector, dumpable; no mappings and no executable.
absl::Status FillMemoryAddresses(const kernel::ProcessHandle& process,
                                 const kernel::ProcessRecord& record, proto::ProcessState& state);

// Ids in the process tree, inventory, clocks as the process read them at the instant.
void FillIdentity(const CaptureInstant& instant, const kernel::StatusFields& status,
                  const kernel::TaskSnapshot& snapshot, bool tcp_close, proto::ProcessState& state);

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_PROCESS_CAPTURE_H_
