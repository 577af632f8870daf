// What can be told about a process from outside, as the record BPF would give.
#ifndef PREDUMP_CHECKPOINT_PLAIN_OUTSIDE_H_
#define PREDUMP_CHECKPOINT_PLAIN_OUTSIDE_H_

#include "absl/status/statusor.h"
#include "src/kernel/bpf/task_capture.h"
#include "src/kernel/process.h"

namespace predump::checkpoint {

// Leader first, then ascending. Times stay zero. Errors: TargetExited; FailedPrecondition: this
// kernel does not list POSIX timers.
absl::StatusOr<kernel::TaskSnapshot> SnapshotFromOutside(const kernel::ProcessHandle& process);

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_PLAIN_OUTSIDE_H_
