// The kernel's record of a process (kernel::TaskSnapshot) where there is no BPF: from /proc, from
// system calls about other tasks, and, of a frozen process, from its threads themselves
// (src/kernel/readout_injection.h).
#ifndef PREDUMP_CHECKPOINT_PLAIN_SNAPSHOT_H_
#define PREDUMP_CHECKPOINT_PLAIN_SNAPSHOT_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/checkpoint/sleep_notes.h"
#include "src/kernel/bpf/task_capture.h"
#include "src/kernel/freezer.h"
#include "src/kernel/process.h"

namespace predump::checkpoint {

// Fields nobody reads (the leading `header`s, scheduler clocks, job control) stay zero.
class PlainSnapshotReader {
 public:
  // `process` outlives the object.
  static absl::StatusOr<PlainSnapshotReader> Create(const kernel::ProcessHandle& process);

  // While it runs: without signal actions, timers, alternate stacks and the like; the heap's end is
  // its beginning. Also notes who is asleep in what, for calls that are interrupted twice.
  absl::StatusOr<kernel::TaskSnapshot> ReadRunning();
  // Right before the freeze.
  absl::Status NoteSleepers();
  // Everything. The threads run a little program each and come back as they were.
  // Errors: TargetExited; those of kernel::ReadOut and RestartBlockFromNotes; Unimplemented: a
  // kernel without CONFIG_CHECKPOINT_RESTORE.
  absl::StatusOr<kernel::TaskSnapshot> ReadFrozen(kernel::FrozenProcess& frozen);
  // `before` as it is now: of a frozen process only time goes on, and the alarm may have gone off.
  absl::StatusOr<kernel::TaskSnapshot> ReadAgain(kernel::FrozenProcess& frozen,
                                                 const kernel::TaskSnapshot& before);

  // Of the last NoteSleepers; since_ns in the host's CLOCK_MONOTONIC like the snapshots' times.
  const SleepNotes& late_notes() const { return late_notes_; }

 private:
  PlainSnapshotReader(const kernel::ProcessHandle& process, int64_t clock_offset_ns)
      : process_(&process), clock_offset_ns_(clock_offset_ns) {}

  int64_t HostMonotonic() const;
  absl::StatusOr<SleepNotes> Notes() const;
  absl::StatusOr<kernel::TaskSnapshot> ReadFromOutside() const;
  absl::Status ReadFromInside(kernel::FrozenProcess& frozen, kernel::TaskSnapshot& snapshot) const;
  absl::Status FillCalls(kernel::FrozenProcess& frozen, kernel::TaskSnapshot& snapshot) const;

  const kernel::ProcessHandle* process_;
  int64_t clock_offset_ns_;  // of this program's time namespace
  SleepNotes early_notes_;
  SleepNotes late_notes_;
  int64_t noted_ns_ = 0;  // when late_notes_ was made, 0 never
};

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_PLAIN_SNAPSHOT_H_
