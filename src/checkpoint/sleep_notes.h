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

namespace predump::checkpoint {

struct SleepNote {
  kernel::SyscallState call;
  // CLOCK_MONOTONIC of the caller; nullopt where the kernel hides it (CONFIG_SCHED_DEBUG).
  std::optional<int64_t> since_ns;
  std::string wait_channel;  // only of restart_syscall(2), which hides what it repeats
};

// By thread id. Threads that run are left out.
using SleepNotes = absl::flat_hash_map<pid_t, SleepNote>;

// Notes all sleepers of a running process. Tens of microseconds a thread; moves the calling thread
// from processor to processor meanwhile, since each has a clock of its own. Errors: TargetExited.
absl::StatusOr<SleepNotes> NoteSleepers(const kernel::ProcessHandle& process);

// What is known about a stopped thread's call.
struct CallNotes {
  const SleepNote* early = nullptr;  // of the survey, before anything stopped the thread
  const SleepNote* late = nullptr;   // right before the freeze
  int64_t frozen_ns = 0;             // CLOCK_MONOTONIC of the caller, about when it was stopped
};

// The restart block of a thread stopped with `registers`, deadlines in the caller's
// CLOCK_MONOTONIC. "No restart" where the call did not return -516. Where nothing tells how much
// time has passed the whole of it is left: a call may come back late, never early.
// FailedPrecondition: a call interrupted before, and nothing tells which.
absl::StatusOr<kernel::RestartBlock> RestartBlockFromNotes(const kernel::ProcessHandle& process,
                                                           pid_t tid,
                                                           const user_regs_struct& registers,
                                                           const CallNotes& notes);

// Whether the thread is still in the call that was noted.
bool IsSameCall(const kernel::SyscallState& noted, const user_regs_struct& registers);

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_SLEEP_NOTES_H_
