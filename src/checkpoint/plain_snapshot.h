// The kernel's record of a process (kernel::TaskSnapshot) where there is no BPF: from /proc, from
// system calls about other tasks, and, of a frozen process, from its threads themselves
// (src/kernel/readout_injection.h).
#ifndef PREDUMP_CHECKPOINT_PLAIN_SNAPSHOT_H_
#define PREDUMP_CHECKPOINT_PLAIN_SNAPSHOT_H_

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/checkpoint/sleep_notes.h"
#include "src/kernel/bpf/task_capture.h"
#include "src/kernel/freezer.h"
#include "src/kernel/process.h"
#include "src/kernel/setup_injection.h"
#include "src/kernel/time_offsets.h"

namespace predump::checkpoint {

// Fields nobody reads (the leading `header`s, scheduler clocks, job control) stay zero.
class PlainSnapshotReader {
 public:
  // `process` outlives the object.
  static absl::StatusOr<PlainSnapshotReader> Create(const kernel::ProcessHandle& process);

  // While it runs: without signal actions, timers, alternate stacks and the like; the heap's end is
  // its beginning. Also notes who is asleep in what, for calls that are interrupted twice.
  // (RememberSetup knows better about the thread that the setup stopped.)
  absl::StatusOr<kernel::TaskSnapshot> ReadRunning();
  void RememberSetup(const kernel::SetupResult& setup);
  // Right before the freeze.
  absl::Status NoteSleepers();
  // Everything. The threads run a little program each and come back as they were.
  // Errors: TargetExited; those of kernel::ReadOut and RestartBlockFromNotes; Unimplemented: a
  // kernel without CONFIG_CHECKPOINT_RESTORE.
  absl::StatusOr<kernel::TaskSnapshot> ReadFrozen(kernel::FrozenProcess& frozen);
  // `before` as it is now: of a frozen process only time goes on, and the alarm may have gone off.
  absl::StatusOr<kernel::TaskSnapshot> ReadAgain(kernel::FrozenProcess& frozen,
                                                 const kernel::TaskSnapshot& before);

  // Of a stopped thread with that many voluntary switches: since when it slept in the call that
  // NoteSleepers found it in, as the host's CLOCK_MONOTONIC. nullopt: unknown, or that was another
  // sleep.
  std::optional<uint64_t> AsleepSince(pid_t tid, uint64_t switches) const;

 private:
  PlainSnapshotReader(const kernel::ProcessHandle& process, const kernel::TimeOffsets& ours,
                      const kernel::TimeOffsets& theirs)
      : process_(&process),
        clock_offset_ns_(ours.monotonic_ns),
        process_clock_offset_ns_(theirs.monotonic_ns) {}

  int64_t HostMonotonic() const;
  absl::StatusOr<kernel::TaskSnapshot> ReadFromOutside() const;
  absl::Status ReadFromInside(kernel::FrozenProcess& frozen, kernel::TaskSnapshot& snapshot) const;
  absl::Status FillCalls(kernel::FrozenProcess& frozen, kernel::TaskSnapshot& snapshot) const;

  const kernel::ProcessHandle* process_;
  int64_t clock_offset_ns_;          // of this program's time namespace
  int64_t process_clock_offset_ns_;  // of the process's
  CallNotes early_notes_;
  CallNotes late_notes_;
};

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_PLAIN_SNAPSHOT_H_
