#include "src/predump/child_command.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"
#include "src/base/errors.h"
#include "src/transport/deadline.h"
#include "src/transport/socket.h"

namespace predump {
namespace {

using transport::Deadline;
using transport::WaitResult;

// A command that is asked to end may have something to tidy up.
constexpr absl::Duration kTermPatience = absl::Seconds(2);
constexpr size_t kKeptLines = 6;
constexpr size_t kLongestLine = 500;

struct Pipe {
  base::UniqueFd read;
  base::UniqueFd write;
};

absl::StatusOr<Pipe> MakePipe() {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0) return base::ErrnoError(errno, "pipe2");
  return Pipe{base::UniqueFd(fds[0]), base::UniqueFd(fds[1])};
}

// All signals blocked, so that a thread made meanwhile takes none that others wait for.
auto BlockAllSignals() {
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  return absl::Cleanup([before] { ::pthread_sigmask(SIG_SETMASK, &before, nullptr); });
}

struct ChildPlan {
  char* const* arguments;
  int input;
  int output;
  int errors;
  int failure;
  pid_t parent;
  bool own_session;
};

// In the child of a program with several threads: nothing that takes a lock.
[[noreturn]] void RunChild(const ChildPlan& plan) {
  // A descriptor may already lie where another one belongs.
  int high[3];
  const int from[] = {plan.input, plan.output, plan.errors};
  bool ok = true;
  for (int i = 0; i < 3; ++i) ok = ok && (high[i] = ::fcntl(from[i], F_DUPFD_CLOEXEC, 10)) >= 0;
  for (int i = 0; i < 3; ++i) ok = ok && ::dup2(high[i], i) >= 0;
  if (plan.own_session) {
    ok = ok && ::setsid() >= 0;
  } else {
    ok = ok && ::prctl(PR_SET_PDEATHSIG, SIGTERM) == 0;
    if (::getppid() != plan.parent) ::_exit(1);  // too late for that signal
  }
  for (int number = 1; number < NSIG; ++number) ::signal(number, SIG_DFL);
  ::signal(SIGINT, SIG_IGN);
  ::signal(SIGHUP, SIG_IGN);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  if (ok) ::execvp(plan.arguments[0], plan.arguments);
  const int error = errno;
  (void)!::write(plan.failure, &error, sizeof error);
  ::_exit(127);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ChildCommand>> ChildCommand::Start(ChildOptions options) {
  PREDUMP_ASSIGN_OR_RETURN(Pipe errors, MakePipe());
  PREDUMP_ASSIGN_OR_RETURN(Pipe failure, MakePipe());
  base::UniqueFd enough(::eventfd(0, EFD_CLOEXEC));
  if (!enough.valid()) return base::ErrnoError(errno, "eventfd");
  std::vector<char*> arguments;
  for (std::string& argument : options.arguments) arguments.push_back(argument.data());
  arguments.push_back(nullptr);
  const ChildPlan plan = {arguments.data(),   options.input.get(), options.output.get(),
                          errors.write.get(), failure.write.get(), ::getpid(),
                          options.own_session};
  pid_t pid;
  {
    const auto unblock = BlockAllSignals();
    pid = ::fork();
    if (pid == 0) RunChild(plan);
  }
  if (pid < 0) return base::ErrnoError(errno, "fork");
  base::UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  failure.write = base::UniqueFd();
  errors.write = base::UniqueFd();
  int error = pidfd.valid() ? 0 : errno;
  ssize_t n;
  do {
    n = ::read(failure.read.get(), &error, sizeof error);
  } while (n < 0 && errno == EINTR);
  if (error != 0) {
    ::kill(pid, SIGKILL);
    while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
    }
    return base::ErrnoError(error, "run ", options.arguments[0]);
  }
  auto command = std::unique_ptr<ChildCommand>(
      new ChildCommand(pid, std::move(pidfd), std::move(errors.read), std::move(enough)));
  const auto unblock = BlockAllSignals();
  command->reader_ = std::thread([raw = command.get()] { raw->ReadErrors(); });
  return command;
}

ChildCommand::ChildCommand(pid_t pid, base::UniqueFd pidfd, base::UniqueFd errors,
                           base::UniqueFd enough)
    : pid_(pid), pidfd_(std::move(pidfd)), errors_(std::move(errors)), enough_(std::move(enough)) {}

ChildCommand::~ChildCommand() { End(absl::ZeroDuration()); }

void ChildCommand::LogLines() {
  absl::MutexLock lock(&mutex_);
  if (logs_) return;
  logs_ = true;
  // Said before it served: banners, warnings of ssh.
  for (const std::string& line : lines_) spdlog::info("target: {}", line);
}

std::vector<std::string> ChildCommand::last_words() const {
  absl::MutexLock lock(&mutex_);
  return {lines_.begin(), lines_.end()};
}

ChildExit ChildCommand::End(absl::Duration patience) {
  if (exit_.has_value()) return *exit_;
  ChildExit exit;
  if (!WaitForExit(patience)) {
    exit.was_killed = true;
    ::kill(pid_, SIGTERM);  // it is ours and not reaped: the number is still its own
    if (!WaitForExit(kTermPatience)) ::kill(pid_, SIGKILL);
  }
  while (::waitpid(pid_, &exit.status, 0) < 0 && errno == EINTR) {
  }
  exit_ = exit;
  const uint64_t one = 1;
  if (::write(enough_.get(), &one, sizeof one) != sizeof one) ::abort();  // an eventfd takes a 1
  reader_.join();
  return exit;
}

bool ChildCommand::WaitForExit(absl::Duration patience) const {
  const auto ended = transport::WaitFor(pidfd_.get(), POLLIN, Deadline::After(patience));
  return ended.ok() && *ended == WaitResult::kReady;
}

void ChildCommand::ReadErrors() {
  std::string line;
  char bytes[4096];
  for (;;) {
    // The pipe may stay open behind the command (ssh with ControlPersist): its end is not awaited.
    pollfd fds[] = {{errors_.get(), POLLIN, 0}, {enough_.get(), POLLIN, 0}};
    if (::poll(fds, 2, -1) < 0 && errno != EINTR) break;
    if (fds[0].revents == 0) {
      if (fds[1].revents != 0) break;
      continue;
    }
    const ssize_t n = ::read(errors_.get(), bytes, sizeof bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    for (ssize_t i = 0; i < n; ++i) {
      if (bytes[i] == '\n') {
        TakeLine(std::exchange(line, ""));
      } else if (bytes[i] != '\r' && line.size() < kLongestLine) {
        // It may be another host's words, and goes to a terminal.
        line.push_back(static_cast<unsigned char>(bytes[i]) < ' ' ? ' ' : bytes[i]);
      }
    }
  }
  TakeLine(std::move(line));
}

void ChildCommand::TakeLine(std::string line) {
  if (line.empty()) return;
  absl::MutexLock lock(&mutex_);
  if (logs_) spdlog::warn("target: {}", line);
  lines_.push_back(std::move(line));
  if (lines_.size() > kKeptLines) lines_.pop_front();
}

}  // namespace predump
