#include "tests/support/child_process.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "src/base/errors.h"

namespace predump::test_support {
namespace {

// What the child needs, made before the clone: afterwards it must not allocate.
struct Launch {
  std::vector<char*> argv;
  std::vector<std::string> environment_text;
  std::vector<char*> environment;
  const StartOptions* options;
  int null_fd;
  int failure_fd;
};

// Which step failed in the child, with its errno, through a pipe that execve closes.
struct Failure {
  int error_number;
  char step[28];
};

[[noreturn]] void Fail(int failure_fd, const char* step) {
  Failure failure = {errno, {}};
  strncpy(failure.step, step, sizeof failure.step - 1);
  [[maybe_unused]] const ssize_t written = write(failure_fd, &failure, sizeof failure);
  _exit(127);
}

void PutDescriptor(int from, int to, int failure_fd) {
  // dup2 onto itself would leave O_CLOEXEC set.
  if (from == to ? fcntl(to, F_SETFD, 0) == -1 : dup2(from, to) == -1) Fail(failure_fd, "dup2");
}

[[noreturn]] void RunChild(const Launch& launch) {
  const StartOptions& options = *launch.options;
  // Above what the three standard descriptors may overwrite.
  const int failure_fd = fcntl(launch.failure_fd, F_DUPFD_CLOEXEC, 3);
  if (failure_fd == -1) Fail(launch.failure_fd, "F_DUPFD");
  std::array<int, 3> from = {options.stdin_fd >= 0 ? options.stdin_fd : launch.null_fd,
                             options.stdout_fd >= 0 ? options.stdout_fd : STDOUT_FILENO,
                             options.stderr_fd >= 0 ? options.stderr_fd : STDERR_FILENO};
  // None of them may be overwritten before its turn.
  for (int& fd : from) {
    if (fd <= 2) fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (fd == -1) Fail(failure_fd, "F_DUPFD");
  }
  for (int to = 0; to < 3; ++to) PutDescriptor(from[static_cast<size_t>(to)], to, failure_fd);
  syscall(SYS_close_range, 3, ~0U, 4 /* CLOSE_RANGE_CLOEXEC */);

  if (options.new_session && setsid() == -1) Fail(failure_fd, "setsid");
  if (!options.working_directory.empty() && chdir(options.working_directory.c_str()) == -1) {
    Fail(failure_fd, "chdir");
  }
  // Dispositions and mask as a shell would hand them on, whatever the test has made of its own.
  for (int number = 1; number < NSIG; ++number) signal(number, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  execvpe(launch.argv[0], launch.argv.data(), launch.environment.data());
  Fail(failure_fd, "execvp");
}

Launch PrepareLaunch(const StartOptions& options) {
  Launch launch = {};
  launch.options = &options;
  for (const std::string& argument : options.argv) {
    launch.argv.push_back(const_cast<char*>(argument.c_str()));
  }
  launch.argv.push_back(nullptr);
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string name(*entry, strcspn(*entry, "="));
    if (!options.environment.contains(name)) launch.environment_text.emplace_back(*entry);
  }
  for (const auto& [name, value] : options.environment) {
    launch.environment_text.push_back(absl::StrCat(name, "=", value));
  }
  for (std::string& entry : launch.environment_text) launch.environment.push_back(entry.data());
  launch.environment.push_back(nullptr);
  return launch;
}

// glibc 2.36 declares its wrapper without C linkage.
int SendSignal(int pidfd, int number) {
  return static_cast<int>(syscall(SYS_pidfd_send_signal, pidfd, number, nullptr, 0));
}

ExitStatus FromSiginfo(const siginfo_t& info) {
  ExitStatus status;
  if (info.si_code == CLD_EXITED) {
    status.code = info.si_status;
  } else {
    status.signal = info.si_status;
  }
  return status;
}

}  // namespace

std::string ExitStatus::ToString() const {
  if (code.has_value()) return absl::StrCat("exit code ", *code);
  return absl::StrCat("signal ", signal.value_or(0));
}

absl::Status WaitForEnd(int pidfd, absl::Duration deadline) {
  const absl::Time end = absl::Now() + deadline;
  for (;;) {
    const int64_t left_ms = absl::ToInt64Milliseconds(end - absl::Now());
    pollfd entry = {pidfd, POLLIN, 0};
    const int ready = poll(&entry, 1, static_cast<int>(std::max<int64_t>(left_ms, 0)));
    if (ready == 1) return absl::OkStatus();
    if (ready == -1 && errno != EINTR) return base::ErrnoError(errno, "poll of a pidfd");
    if (ready == 0 && left_ms <= 0) {
      return absl::DeadlineExceededError(
          absl::StrCat("process still runs after ", absl::FormatDuration(deadline)));
    }
  }
}

absl::StatusOr<ChildProcess> ChildProcess::Start(const StartOptions& options) {
  if (options.argv.empty()) return absl::InvalidArgumentError("argv is empty");
  const base::UniqueFd null_fd(open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!null_fd.valid()) return base::ErrnoError(errno, "open /dev/null");
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) == -1) return base::ErrnoError(errno, "pipe2");
  const base::UniqueFd failures(ends[0]);
  base::UniqueFd failure_writer(ends[1]);

  Launch launch = PrepareLaunch(options);
  launch.null_fd = null_fd.get();
  launch.failure_fd = failure_writer.get();
  int pidfd = -1;
  clone_args arguments = {};
  arguments.flags = CLONE_PIDFD;
  arguments.pidfd = reinterpret_cast<uint64_t>(&pidfd);
  arguments.exit_signal = SIGCHLD;
  const auto pid = static_cast<pid_t>(syscall(SYS_clone3, &arguments, sizeof arguments));
  if (pid == -1) return base::ErrnoError(errno, "clone3");
  if (pid == 0) RunChild(launch);
  ChildProcess child(pid, base::UniqueFd(pidfd));

  if (absl::Status closed = failure_writer.Close(); !closed.ok()) return closed;
  Failure failure;
  ssize_t got;
  do {
    got = read(failures.get(), &failure, sizeof failure);
  } while (got == -1 && errno == EINTR);
  if (got == 0) return child;
  if (got != sizeof failure) return absl::InternalError("child ended before it executed");
  return base::ErrnoError(failure.error_number, failure.step, " ", options.argv[0]);
}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  if (this != &other) {
    KillAndReap();
    pid_ = other.pid_;
    pidfd_ = std::move(other.pidfd_);
    exit_ = other.exit_;
  }
  return *this;
}

ChildProcess::~ChildProcess() { KillAndReap(); }

void ChildProcess::KillAndReap() {
  if (!pidfd_.valid() || exit_.has_value()) return;
  SendSignal(pidfd_.get(), SIGKILL);
  siginfo_t info;
  while (waitid(P_PIDFD, static_cast<id_t>(pidfd_.get()), &info, WEXITED) == -1 && errno == EINTR) {
  }
}

absl::Status ChildProcess::Signal(int number) {
  if (exit_.has_value() || !pidfd_.valid()) {
    return absl::FailedPreconditionError(absl::StrCat("process ", pid_, " has been reaped"));
  }
  if (SendSignal(pidfd_.get(), number) == -1) {
    return base::ErrnoError(errno, "pidfd_send_signal ", pid_, " signal ", number);
  }
  return absl::OkStatus();
}

absl::StatusOr<ExitStatus> ChildProcess::Wait(absl::Duration deadline) {
  if (exit_.has_value()) return *exit_;
  PREDUMP_RETURN_IF_ERROR(base::Annotate(WaitForEnd(pidfd_.get(), deadline), absl::StrCat(pid_)));
  siginfo_t info = {};
  if (waitid(P_PIDFD, static_cast<id_t>(pidfd_.get()), &info, WEXITED) == -1) {
    return base::ErrnoError(errno, "waitid ", pid_);
  }
  exit_ = FromSiginfo(info);
  return *exit_;
}

absl::StatusOr<ExitStatus> ChildProcess::Terminate(absl::Duration deadline) {
  if (!exit_.has_value()) PREDUMP_RETURN_IF_ERROR(Signal(SIGTERM));
  return Wait(deadline);
}

pid_t ChildProcess::Release() {
  pidfd_ = base::UniqueFd();
  return pid_;
}

}  // namespace predump::test_support
