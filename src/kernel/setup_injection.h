// The one stop before round 0: a userfaultfd of the target, and the helper task.
//
// One thread of the target is stopped once, runs a self-finishing program in the zero padding of
// the vDSO, and goes on where it was, interrupted calls included. The program, run to its end
// without us, closes what it opened, reaps what it made and restores every register and the signal
// mask, so that our death at any instant leaves the target as it was. Thread rule: the calling
// thread becomes the helper's tracer.
#ifndef PREDUMP_KERNEL_SETUP_INJECTION_H_
#define PREDUMP_KERNEL_SETUP_INJECTION_H_

#include <sys/types.h>

#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "src/base/unique_fd.h"
#include "src/base/units.h"
#include "src/kernel/helper_task.h"
#include "src/kernel/process.h"
#include "src/kernel/procfs_task.h"
#include "src/kernel/sleep_note.h"

namespace predump::kernel {

struct SetupRequest {
  bool userfaultfd = true;
  bool helper = true;
  base::ByteCount pipe_capacity{1 << 20};
  // Whether the process is a child subreaper, where known (BPF): a helper would become its child,
  // so it gets none. Unset: asked for by one more remote call.
  std::optional<bool> is_subreaper = std::nullopt;
  // How long is waited for a thread that can be stopped: vfork parents and other uninterruptible
  // waits come to their end first.
  absl::Duration timeout = absl::Seconds(2);
};

struct SetupResult {
  // Valid where requested and given; else userfaultfd_status says why not.
  base::UniqueFd userfaultfd;
  absl::Status userfaultfd_status;
  std::optional<HelperTask> helper;
  absl::Status helper_status;  // why there is none: EAGAIN, pids.max, init of its namespace, ...
  // What the process felt of it: from the request to stop until the thread was let go of, and how
  // long others were held that stopped late (unstopped_threads.h).
  absl::Duration stopped;
  pid_t thread = 0;  // which
  // The sleep it was in, if the kernel goes on with that by itself (restart_syscall(2), which hides
  // what it repeats), and if it is known since when.
  struct BrokenOffCall {
    SyscallState call;
    SleepNote sleep;
  };
  std::optional<BrokenOffCall> broken_off;
};

// Errors (nothing was done to the target): TargetExited; FailedPrecondition: stopped, traced by
// somebody else (named), every thread seccomp-filtered, the padding in use, or tasks of another
// engine inside it; Unimplemented: not a 64-bit process or no vDSO; DeadlineExceeded no thread
// could be stopped within the timeout, or one that was asked to has not come back from an
// uninterruptible wait (named), of which the kernel lets go when the calling thread exits.
absl::StatusOr<SetupResult> InjectSetup(const ProcessHandle& process, const SetupRequest& request);

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_SETUP_INJECTION_H_
