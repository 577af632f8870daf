#include "src/predump/process_watch.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"
#include "src/base/errors.h"
#include "src/kernel/procfs.h"

namespace predump {

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

}  // namespace predump
