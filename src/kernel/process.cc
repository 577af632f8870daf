#include "src/kernel/process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/kernel/procfs_task.h"

namespace predump::kernel {
namespace {

// No wrapper in every supported glibc.
int PidfdOpen(pid_t pid) { return static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)); }

// PF_EXITING of include/linux/sched.h: set before the thread gives up its memory and descriptors.
bool IsExiting(const StatFields& thread) { return (thread.flags & 0x4) != 0; }

// PF_KTHREAD. Having no memory tells less: neither has a process on its way out.
bool IsKernelThread(const StatFields& thread) { return (thread.flags & 0x00200000) != 0; }

// A thread that the end of another takes along has a SIGKILL of its own until it gets to run.
bool IsThreadEnding(const ProcessHandle& process, pid_t tid) {
  const absl::StatusOr<StatusFields> status = ReadThreadStatus(process, tid);
  if (!status.ok()) return base::IsTargetExited(status.status());
  if ((status->pending_thread >> (SIGKILL - 1) & 1) != 0) return true;
  const absl::StatusOr<StatFields> stat = ReadThreadStat(process, tid);
  return stat.ok() ? IsExiting(*stat) : base::IsTargetExited(stat.status());
}

bool AreAllEnding(const ProcessHandle& process) {
  const absl::StatusOr<std::vector<pid_t>> threads = ListThreads(process);
  if (!threads.ok()) return base::IsTargetExited(threads.status());
  return std::all_of(threads->begin(), threads->end(),
                     [&](pid_t tid) { return IsThreadEnding(process, tid); });
}

}  // namespace

absl::StatusOr<ProcessHandle> ProcessHandle::Open(pid_t pid) {
  if (pid <= 0) return absl::InvalidArgumentError(absl::StrCat("not a process id: ", pid));
  ProcessHandle handle;
  handle.pid_ = pid;
  handle.pidfd_ = base::UniqueFd(PidfdOpen(pid));
  if (!handle.pidfd_.valid()) {
    if (errno == ESRCH) return base::TargetExited(absl::StrCat("no process ", pid));
    // EINVAL (ENOENT since 6.14 and later) is how pidfd_open refuses a thread that leads no group.
    if (errno == EINVAL || errno == ENOENT) {
      return absl::InvalidArgumentError(
          absl::StrCat(pid, " is a thread, not a process: give its thread group's id"));
    }
    return base::ErrnoError(errno, "pidfd_open ", pid);
  }
  const std::string path = absl::StrCat("/proc/", pid);
  handle.proc_ = base::UniqueFd(::open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!handle.proc_.valid()) {
    if (errno == ENOENT) return base::TargetExited(absl::StrCat("no process ", pid));
    return base::ErrnoError(errno, "open ", path);
  }
  // The pidfd still refers to a live process after the directory was opened, so both mean the same.
  PREDUMP_ASSIGN_OR_RETURN(const bool exited, handle.HasExited());
  if (exited) return base::TargetExited(absl::StrCat("process ", pid, " has exited"));
  PREDUMP_ASSIGN_OR_RETURN(const StatFields stat, ReadStat(handle));
  handle.start_time_ticks_ = stat.start_time_ticks;
  if (IsKernelThread(stat)) {
    return absl::FailedPreconditionError(
        absl::StrCat("process ", pid, " (", stat.comm, ") is a kernel thread"));
  }
  return handle;
}

absl::StatusOr<ProcessHandle> ProcessHandle::Duplicate() const {
  ProcessHandle copy;
  copy.pid_ = pid_;
  copy.start_time_ticks_ = start_time_ticks_;
  copy.pidfd_ = base::UniqueFd(::fcntl(pidfd_.get(), F_DUPFD_CLOEXEC, 0));
  if (!copy.pidfd_.valid()) return base::ErrnoError(errno, "duplicate pidfd");
  copy.proc_ = base::UniqueFd(::fcntl(proc_.get(), F_DUPFD_CLOEXEC, 0));
  if (!copy.proc_.valid()) return base::ErrnoError(errno, "duplicate /proc descriptor");
  return copy;
}

absl::Status ProcessHandle::SendSignal(int signal_number) const {
  if (::syscall(SYS_pidfd_send_signal, pidfd_.get(), signal_number, nullptr, 0) == 0) {
    return absl::OkStatus();
  }
  return ErrorFor(errno, absl::StrCat("pidfd_send_signal ", signal_number));
}

absl::StatusOr<bool> ProcessHandle::HasExited() const { return WaitForExit(absl::ZeroDuration()); }

bool ProcessHandle::IsEnding() const {
  if (!IsThreadEnding(*this, pid_)) return false;
  if (AreAllEnding(*this)) return true;
  // A thread that has taken its SIGKILL shows neither that nor, for an instant, that it is exiting.
  const absl::StatusOr<bool> soon = WaitForExit(absl::Milliseconds(1));
  return (soon.ok() && *soon) || AreAllEnding(*this);
}

absl::StatusOr<bool> ProcessHandle::WaitForExit(absl::Duration timeout) const {
  const int64_t deadline = base::MonotonicNanoseconds() + absl::ToInt64Nanoseconds(timeout);
  for (;;) {
    struct pollfd poll_fd = {pidfd_.get(), POLLIN, 0};
    const int64_t left = std::max<int64_t>(deadline - base::MonotonicNanoseconds(), 0);
    const struct timespec wait = {static_cast<time_t>(left / 1'000'000'000), left % 1'000'000'000};
    const int ready = ::ppoll(&poll_fd, 1, &wait, nullptr);
    if (ready >= 0) return ready > 0;
    if (errno != EINTR) return base::ErrnoError(errno, "poll pidfd of process ", pid_);
  }
}

absl::StatusOr<base::UniqueFd> ProcessHandle::GetDescriptor(int remote_fd) const {
  base::UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd_.get(), remote_fd, 0)));
  if (!fd.valid()) return ErrorFor(errno, absl::StrCat("pidfd_getfd ", remote_fd));
  return fd;
}

absl::StatusOr<base::UniqueFd> ProcessHandle::OpenProc(absl::string_view name, int flags) const {
  base::UniqueFd fd(::openat(proc_.get(), std::string(name).c_str(), flags | O_CLOEXEC));
  if (!fd.valid()) return ErrorFor(errno, absl::StrCat("open /proc/", pid_, "/", name));
  return fd;
}

absl::Status ProcessHandle::ErrorFor(int error_number, absl::string_view operation) const {
  const absl::StatusOr<bool> exited = HasExited();
  // ESRCH is what meets a process without memory. Other errors are ordinary ones: an exit that they
  // come of shows in what is done next.
  if ((exited.ok() && *exited) || (error_number == ESRCH && IsEnding())) {
    return base::TargetExited(absl::StrCat("process ", pid_, " has exited (", operation, ")"));
  }
  return base::ErrnoError(error_number, operation, " of process ", pid_);
}

}  // namespace predump::kernel
