#include "src/kernel/thread_choice.h"

#include <sched.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/kernel/procfs_task.h"
#include "src/kernel/restart.h"

namespace predump::kernel {
namespace {

constexpr size_t kMostThreadsLookedAt = 64;

struct Candidate {
  pid_t tid = 0;
  int rank = 0;  // lower is better
};

bool WaitsForAllKinds(const SyscallState& state) {
  const uint64_t options = state.number == SYS_wait4    ? state.arguments[2]
                           : state.number == SYS_waitid ? state.arguments[3]
                                                        : 0;
  return (options & (__WALL | __WCLONE)) != 0;
}

// How little a stop disturbs a thread; nullopt where it cannot be stopped.
std::optional<int> Rank(const SyscallState& state) {
  if (state.running) return 1;
  switch (state.number) {
    case SYS_vfork:
    case SYS_clone3:
      return std::nullopt;
    case SYS_clone:
      if ((state.arguments[0] & CLONE_VFORK) != 0) return std::nullopt;
      return 2;
    // Asleep, and the kernel goes on with the sleep by itself.
    case SYS_futex:
    case SYS_nanosleep:
    case SYS_clock_nanosleep:
    case SYS_poll:
    case SYS_select:
    case SYS_pause:
    case SYS_wait4:
    case SYS_waitid:
      return 0;
    // They put a signal mask of their own in place and are begun anew.
    case SYS_rt_sigsuspend:
    case SYS_ppoll:
    case SYS_pselect6:
      return 3;
    default:
      // Calls that report EINTR after a stop only where nothing else is to be had.
      return state.number >= 0 && ReturnsEintrAfterStop(static_cast<uint64_t>(state.number)) ? 4
                                                                                             : 2;
  }
}

}  // namespace

absl::StatusOr<ThreadChoice> ChooseThreads(const ProcessHandle& process,
                                           base::AddressRange padding) {
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<pid_t> tids, ListThreads(process));
  ThreadChoice choice;
  std::vector<Candidate> candidates;
  bool filtered = false;
  bool busy = false;
  for (const pid_t tid : std::span(tids).first(std::min(tids.size(), kMostThreadsLookedAt))) {
    const absl::StatusOr<StatusFields> status = ReadThreadStatus(process, tid);
    const absl::StatusOr<SyscallState> state = ReadThreadSyscall(process, tid);
    if (!status.ok() || !state.ok()) continue;  // it exited
    if (!state->running && padding.Contains(base::RemoteAddress(state->instruction_pointer))) {
      return absl::FailedPreconditionError(
          absl::StrCat("thread ", tid, " has not left the program of an engine that died"));
    }
    if (WaitsForAllKinds(*state)) choice.waits_for_all_kinds = tid;
    // A filter may kill the process for a call it does not expect.
    filtered |= status->seccomp_mode != 0;
    if (status->seccomp_mode != 0 || status->state == 'Z' || status->state == 'X') continue;
    // Those in an uninterruptible wait (unstopped_threads.h) come back to be looked at again.
    const std::optional<int> rank = status->state == 'D' ? std::nullopt : Rank(*state);
    busy |= !rank.has_value();
    if (rank.has_value()) candidates.push_back({tid, *rank});
  }
  if (candidates.empty() && filtered && !busy) {
    return absl::FailedPreconditionError(
        absl::StrCat("process ", process.pid(),
                     " has a seccomp filter, which may kill it for the calls of the setup"));
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Candidate& a, const Candidate& b) { return a.rank < b.rank; });
  for (const Candidate& candidate : candidates) choice.tids.push_back(candidate.tid);
  return choice;
}

}  // namespace predump::kernel
