// What /proc tells about threads asleep in a call, in place of the kernel's restart block where
// there is no BPF: which call, and since when.
#ifndef PREDUMP_CHECKPOINT_SLEEP_NOTES_H_
#define PREDUMP_CHECKPOINT_SLEEP_NOTES_H_

#include <sys/types.h>
#include <sys/user.h>

#include <cstdint>
#include <optional>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "src/kernel/bpf/records.h"
#include "src/kernel/process.h"
#include "src/kernel/procfs.h"
#include "src/kernel/sleep_note.h"

namespace predump::checkpoint {

struct CallNote {
  kernel::SyscallState call;
  std::optional<kernel::SleepNote> sleep;  // nullopt where the kernel hides it
  std::string wait_channel;  // only of restart_syscall(2), which hides what it repeats
};

// By thread id. Threads that run are left out.
using CallNotes = absl::flat_hash_map<pid_t, CallNote>;

// Notes all sleepers of a running process. Tens of microseconds a thread; moves the calling thread
// from processor to processor meanwhile, since each has a clock of its own. Errors: TargetExited.
absl::StatusOr<CallNotes> NoteSleepers(const kernel::ProcessHandle& process);

// What is known about a stopped thread's call.
struct StoppedCall {
  const CallNote* early = nullptr;  // before another stop broke it off first
  const CallNote* late = nullptr;   // right before the freeze
  uint64_t switches = 0;            // voluntary ones of the thread, as it is stopped
  int64_t frozen_ns = 0;            // the host's CLOCK_MONOTONIC, not before it was stopped
  int64_t clock_offset_ns = 0;      // what our time namespace adds to that clock
};

// The restart block of a thread stopped with `registers`, deadlines in the host's CLOCK_MONOTONIC.
// "No restart" where the call did not return -516. Where nothing tells how much time has passed the
// whole of it is left: a call may come back late, never early.
// FailedPrecondition: a call interrupted before, and nothing tells which.
absl::StatusOr<kernel::RestartBlock> RestartBlockFromNotes(const kernel::ProcessHandle& process,
                                                           pid_t tid,
                                                           const user_regs_struct& registers,
                                                           const StoppedCall& notes);

// Whether the thread is still in the call that was noted.
bool IsSameCall(const kernel::SyscallState& noted, const user_regs_struct& registers);

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_SLEEP_NOTES_H_
