#include "src/cli/signals.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/base/clock.h"
#include "src/base/errors.h"

namespace predump::cli {

absl::StatusOr<std::unique_ptr<SignalWatcher>> SignalWatcher::Start(
    absl::Duration time_limit, std::function<void(const std::string&)> on_request) {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) ::sigaddset(&set, signal);
  if (::sigprocmask(SIG_BLOCK, &set, nullptr) != 0) return base::ErrnoError(errno, "sigprocmask");
  auto watcher = std::unique_ptr<SignalWatcher>(new SignalWatcher);
  watcher->signals_ = base::UniqueFd(::signalfd(-1, &set, SFD_CLOEXEC));
  if (!watcher->signals_.valid()) return base::ErrnoError(errno, "signalfd");
  watcher->stop_ = base::UniqueFd(::eventfd(0, EFD_CLOEXEC));
  if (!watcher->stop_.valid()) return base::ErrnoError(errno, "eventfd");
  watcher->on_request_ = std::move(on_request);
  watcher->thread_ = std::thread([raw = watcher.get(), time_limit] {
    // SIGCHLD of a tracee is for the tracer's thread, which waits for it.
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, nullptr);
    raw->Run(time_limit);
  });
  return watcher;
}

SignalWatcher::~SignalWatcher() {
  if (!thread_.joinable()) return;
  const uint64_t one = 1;
  if (::write(stop_.get(), &one, sizeof one) != sizeof one) ::abort();  // an eventfd takes a 1
  thread_.join();
}

void SignalWatcher::Run(absl::Duration time_limit) {
  const base::Stopwatch watch;
  bool limit_told = false;
  for (;;) {
    pollfd fds[] = {{signals_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
    timespec wait = {};
    timespec* timeout = nullptr;
    if (!limit_told && time_limit != absl::InfiniteDuration()) {
      wait = absl::ToTimespec(std::max(time_limit - watch.Elapsed(), absl::ZeroDuration()));
      timeout = &wait;
    }
    const int ready = ::ppoll(fds, std::size(fds), timeout, nullptr);
    if (ready < 0 && errno != EINTR) return;
    if (fds[1].revents != 0) return;
    if (fds[0].revents != 0) {
      signalfd_siginfo info;
      if (::read(signals_.get(), &info, sizeof info) == sizeof info) {
        const char* name = ::sigabbrev_np(static_cast<int>(info.ssi_signo));
        on_request_(absl::StrCat("SIG", name != nullptr ? name : "?"));
      }
      continue;
    }
    if (ready == 0) {
      limit_told = true;
      on_request_(absl::StrCat("the time limit of ", absl::FormatDuration(time_limit)));
    }
  }
}

}  // namespace predump::cli
