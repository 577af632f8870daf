#include "src/kernel/wait.h"

#include <errno.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "src/base/clock.h"
#include "src/base/errors.h"

namespace predump::kernel {
namespace {

// SIGCHLD of a stopping tracee wakes sigtimedwait at once. Another thread that does not block
// SIGCHLD may take one that arrives between two looks, so that no sleep is longer than this.
constexpr int64_t kLongestSleepNs = 2'000'000;

// Blocks SIGCHLD for the calling thread, so that it stays queued until sigtimedwait takes it.
class SigchldBlocked {
 public:
  SigchldBlocked() {
    ::sigemptyset(&only_sigchld_);
    ::sigaddset(&only_sigchld_, SIGCHLD);
    ::pthread_sigmask(SIG_BLOCK, &only_sigchld_, &before_);
  }
  ~SigchldBlocked() {
    // Somebody waits for it with a signalfd: SIGCHLD is a hint that coalesces, one more is
    // harmless.
    if (consumed_ && ::sigismember(&before_, SIGCHLD) == 1) ::kill(::getpid(), SIGCHLD);
    ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  SigchldBlocked(const SigchldBlocked&) = delete;
  SigchldBlocked& operator=(const SigchldBlocked&) = delete;

  void Sleep(int64_t nanoseconds) {
    const struct timespec wait = {0, std::min(nanoseconds, kLongestSleepNs)};
    if (::sigtimedwait(&only_sigchld_, nullptr, &wait) == SIGCHLD) consumed_ = true;
  }

 private:
  sigset_t only_sigchld_;
  sigset_t before_;
  bool consumed_ = false;
};

absl::StatusOr<std::optional<WaitEvent>> WaitOnce(const WaitOptions& options, int flags) {
  int status = 0;
  pid_t tid = 0;
  do {
    tid = ::waitpid(options.tid, &status, flags | (options.all_kinds ? __WALL : 0));
  } while (tid < 0 && errno == EINTR);
  if (tid < 0) {
    if (errno == ECHILD) {
      return absl::NotFoundError(absl::StrCat("no child or tracee ", options.tid));
    }
    return base::ErrnoError(errno, "waitpid ", options.tid);
  }
  if (tid == 0) return std::nullopt;
  return WaitEvent::FromStatus(tid, status);
}

}  // namespace

bool WaitEvent::IsGroupStop() const {
  return kind == Kind::kEventStop &&
         (code == SIGSTOP || code == SIGTSTP || code == SIGTTIN || code == SIGTTOU);
}

WaitEvent WaitEvent::FromStatus(pid_t tid, int status) {
  WaitEvent event{.tid = tid};
  if (WIFEXITED(status)) {
    event.kind = Kind::kExited;
    event.code = WEXITSTATUS(status);
  } else if (WIFSIGNALED(status)) {
    event.kind = Kind::kKilled;
    event.code = WTERMSIG(status);
  } else if (WIFCONTINUED(status)) {
    event.kind = Kind::kContinued;
  } else if (const int ptrace_event = status >> 16; ptrace_event == PTRACE_EVENT_STOP) {
    event.kind = Kind::kEventStop;
    event.code = WSTOPSIG(status);
  } else if (ptrace_event != 0) {
    event.kind = Kind::kPtraceEvent;
    event.code = ptrace_event;
  } else if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
    event.kind = Kind::kSyscallStop;
  } else {
    event.kind = Kind::kSignalStop;
    event.code = WSTOPSIG(status);
  }
  return event;
}

std::string WaitEvent::ToString() const {
  switch (kind) {
    case Kind::kExited:
      return absl::StrCat("task ", tid, " exited with status ", code);
    case Kind::kKilled:
      return absl::StrCat("task ", tid, " was killed by signal ", code);
    case Kind::kSignalStop:
      return absl::StrCat("task ", tid, " stopped before signal ", code);
    case Kind::kEventStop:
      return absl::StrCat("task ", tid, " stopped by ptrace (", code, ")");
    case Kind::kSyscallStop:
      return absl::StrCat("task ", tid, " stopped at a system call");
    case Kind::kPtraceEvent:
      return absl::StrCat("task ", tid, " stopped by ptrace event ", code);
    case Kind::kContinued:
      return absl::StrCat("task ", tid, " continued");
  }
  return "unknown event";
}

absl::StatusOr<WaitEvent> Wait(const WaitOptions& options) {
  if (!options.timeout.has_value()) {
    PREDUMP_ASSIGN_OR_RETURN(const std::optional<WaitEvent> event, WaitOnce(options, 0));
    return *event;
  }
  PREDUMP_ASSIGN_OR_RETURN(std::optional<WaitEvent> event, WaitOnce(options, WNOHANG));
  if (event.has_value()) return *event;
  const int64_t deadline =
      base::MonotonicNanoseconds() + absl::ToInt64Nanoseconds(*options.timeout);
  SigchldBlocked sigchld;
  for (;;) {
    PREDUMP_ASSIGN_OR_RETURN(event, WaitOnce(options, WNOHANG));
    if (event.has_value()) return *event;
    const int64_t left = deadline - base::MonotonicNanoseconds();
    if (left <= 0) {
      return absl::DeadlineExceededError(absl::StrCat("no event of task ", options.tid, " within ",
                                                      absl::FormatDuration(*options.timeout)));
    }
    sigchld.Sleep(left);
  }
}

}  // namespace predump::kernel
