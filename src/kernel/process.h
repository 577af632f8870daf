// Identity of another process: a pidfd and an open /proc/PID directory, never a bare pid.
//
// I1: every call acts on the process that was opened or reports TargetExited; a recycled pid is
//     never touched (the directory descriptor is bound to the process, not to the number).
// Thread rule: const calls may run in any thread.
#ifndef PREDUMP_KERNEL_PROCESS_H_
#define PREDUMP_KERNEL_PROCESS_H_

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "src/base/unique_fd.h"

namespace predump::kernel {

class ProcessHandle {
 public:
  ProcessHandle(ProcessHandle&&) noexcept = default;
  ProcessHandle& operator=(ProcessHandle&&) noexcept = default;

  // Opens the process whose thread group leader is `pid` (a number of our own pid namespace).
  // Errors: TargetExited no such process, or a zombie; InvalidArgument `pid` is a thread id that is
  // not a leader; FailedPrecondition a kernel thread; else from pidfd_open(2), openat(2).
  // Source: pidfd_open(2), since Linux 5.3.
  static absl::StatusOr<ProcessHandle> Open(pid_t pid);

  // A second handle to the same process, with descriptors of its own.
  absl::StatusOr<ProcessHandle> Duplicate() const;

  pid_t pid() const { return pid_; }
  int pidfd() const { return pidfd_.get(); }
  // The open /proc/PID directory, for openat(2) and readlinkat(2).
  int proc_fd() const { return proc_.get(); }
  // Field 22 of /proc/PID/stat: clock ticks since boot.
  uint64_t start_time_ticks() const { return start_time_ticks_; }

  // pidfd_send_signal(2), with the siginfo of kill(2). TargetExited if it is gone.
  absl::Status SendSignal(int signal_number) const;

  // Whether every thread has exited (the pidfd is readable), zombies included.
  absl::StatusOr<bool> HasExited() const;
  // Whether every thread has exited or is about to. Memory and descriptors go first, and unmapping
  // a large memory takes a while; until it is done HasExited() says no. A thread that ends alone
  // does not count, but a leader that does costs a millisecond here.
  bool IsEnding() const;
  // Waits for the exit: true once exited, false when `timeout` went by.
  absl::StatusOr<bool> WaitForExit(absl::Duration timeout) const;

  // A duplicate (O_CLOEXEC) of the descriptor `remote_fd` of the process.
  // Errors: TargetExited; EBADF no such descriptor; EPERM no ptrace access.
  // Source: pidfd_getfd(2), since Linux 5.6.
  absl::StatusOr<base::UniqueFd> GetDescriptor(int remote_fd) const;

  // Opens /proc/PID/<name>; O_CLOEXEC is added. TargetExited if the process is gone.
  absl::StatusOr<base::UniqueFd> OpenProc(absl::string_view name, int flags) const;

  // TargetExited if the process has exited, or has no memory (ESRCH) because it IsEnding(); else
  // ErrnoError(error_number, operation, " of process N").
  absl::Status ErrorFor(int error_number, absl::string_view operation) const;

 private:
  ProcessHandle() = default;

  pid_t pid_ = 0;
  uint64_t start_time_ticks_ = 0;
  base::UniqueFd pidfd_;
  base::UniqueFd proc_;
};

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_PROCESS_H_
