// The one gate for waitpid(2): typed outcomes, EINTR retried, an optional deadline.
//
// Thread rule: free functions; ptrace events are seen only by the thread that attached.
#ifndef PREDUMP_KERNEL_WAIT_H_
#define PREDUMP_KERNEL_WAIT_H_

#include <sys/types.h>

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace predump::kernel {

// What became of a task.
struct WaitEvent {
  enum class Kind {
    kExited,       // code = exit status
    kKilled,       // code = signal that killed it
    kSignalStop,   // code = signal about to be delivered (signal-delivery-stop)
    kEventStop,    // PTRACE_EVENT_STOP; code = SIGTRAP, or the stop signal of a group-stop
    kSyscallStop,  // entry or exit of a system call (PTRACE_O_TRACESYSGOOD)
    kPtraceEvent,  // code = PTRACE_EVENT_CLONE and the like
    kContinued,    // WIFCONTINUED
  };

  pid_t tid = 0;
  Kind kind = Kind::kExited;
  int code = 0;

  bool IsExit() const { return kind == Kind::kExited || kind == Kind::kKilled; }
  // A group-stop reported to a PTRACE_SEIZE tracer.
  bool IsGroupStop() const;
  std::string ToString() const;

  // From the raw status of waitpid(2).
  static WaitEvent FromStatus(pid_t tid, int status);
};

struct WaitOptions {
  pid_t tid = -1;  // as waitpid(2): a task, or -1 for any
  // __WALL: also children made by clone(2) without SIGCHLD, as tracees are.
  bool all_kinds = true;
  // Unset: for ever. Zero: look once. Past it: DeadlineExceeded.
  std::optional<absl::Duration> timeout = std::nullopt;
};

// Waits for the next event of a child or tracee.
// Errors: DeadlineExceeded; NotFound (ECHILD) no such child; else from waitpid(2).
// Consumes SIGCHLD of the calling thread while it waits with a timeout, and posts one again where
// the caller had SIGCHLD blocked, so that a signalfd(2) elsewhere is not starved.
absl::StatusOr<WaitEvent> Wait(const WaitOptions& options);

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_WAIT_H_
