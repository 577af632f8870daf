#include "src/predump/process_watch.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/base/unique_fd.h"
#include "src/kernel/procfs.h"

namespace predump {
namespace {

// An exited child stays one until it is waited for, which no descriptor tells.
constexpr int64_t kLookAgainMs = 2;

}  // namespace

absl::StatusOr<ProcessWatch> ProcessWatch::Create(const kernel::ProcessHandle& process,
                                                  bool use_bpf) {
  std::optional<kernel::ProcessEvents> events;
  if (use_bpf) {
    absl::StatusOr<kernel::ProcessEvents> created = kernel::ProcessEvents::Create(process.pid());
    if (created.ok()) {
      events = *std::move(created);
    } else {
      spdlog::debug("no kernel events, procfs serves: {}", std::string(created.status().message()));
    }
  }
  PREDUMP_ASSIGN_OR_RETURN(const kernel::StatFields stat, kernel::ReadStat(process));
  return ProcessWatch(process, stat.start_stack, std::move(events));
}

absl::Status ProcessWatch::CheckSameProgram() {
  bool executed = false;
  if (events_.has_value()) {
    PREDUMP_ASSIGN_OR_RETURN(const std::vector<kernel::ProcessEvent> events, events_->Drain());
    for (const kernel::ProcessEvent& event : events) {
      executed |= event.kind == kernel::ProcessEventKind::kExec;
    }
  }
  // Also with events: their ring may have overflowed.
  PREDUMP_ASSIGN_OR_RETURN(const kernel::StatFields stat, kernel::ReadStat(*process_));
  if (!executed && stat.start_stack == start_stack_) return absl::OkStatus();
  // Without its memory a process has no stack either.
  if (!executed && process_->IsEnding()) {
    return base::TargetExited(absl::StrCat("process ", process_->pid(), " has exited"));
  }
  return absl::FailedPreconditionError(
      absl::StrCat("process ", process_->pid(), " has executed another program (it is '", stat.comm,
                   "' now); start again to move that one"));
}

absl::StatusOr<std::vector<pid_t>> ProcessWatch::Children() const {
  std::vector<pid_t> children;
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<pid_t> threads, kernel::ListThreads(*process_));
  for (const pid_t tid : threads) {
    absl::StatusOr<std::vector<pid_t>> some = kernel::ListChildren(*process_, tid);
    // A thread may end between the two reads.
    if (base::IsTargetExited(some.status())) continue;
    PREDUMP_RETURN_IF_ERROR(some);
    children.insert(children.end(), some->begin(), some->end());
  }
  return children;
}

absl::StatusOr<bool> ProcessWatch::WaitForNoChildren(absl::Duration timeout, int wake_fd) const {
  const base::Stopwatch watch;
  for (;;) {
    PREDUMP_ASSIGN_OR_RETURN(const std::vector<pid_t> children, Children());
    if (children.empty()) return true;
    const absl::Duration left = timeout - watch.Elapsed();
    if (left <= absl::ZeroDuration()) return false;
    // The first of them to exit, for each is one less.
    std::vector<base::UniqueFd> pidfds;
    std::vector<struct pollfd> polled = {{wake_fd, POLLIN, 0}, {process_->pidfd(), POLLIN, 0}};
    for (const pid_t child : children) {
      base::UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, child, 0)));
      struct pollfd exited = {pidfd.get(), POLLIN, 0};
      if (!pidfd.valid() || ::poll(&exited, 1, 0) != 0) continue;
      polled.push_back(exited);
      pidfds.push_back(std::move(pidfd));
    }
    int64_t wait_ms = std::max<int64_t>(absl::ToInt64Milliseconds(left), 1);
    if (pidfds.size() < children.size()) wait_ms = std::min(wait_ms, kLookAgainMs);
    ::poll(polled.data(), polled.size(), static_cast<int>(wait_ms));
    if (polled[0].revents != 0) return false;
    if (polled[1].revents != 0) {
      return base::TargetExited(absl::StrCat("process ", process_->pid(), " has exited"));
    }
  }
}

}  // namespace predump
