// What a process did to itself between two looks: became another program, made children.
#ifndef PREDUMP_PREDUMP_PROCESS_WATCH_H_
#define PREDUMP_PREDUMP_PROCESS_WATCH_H_

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "src/kernel/bpf/process_events.h"
#include "src/kernel/process.h"

namespace predump {

class ProcessWatch {
 public:
  // With `use_bpf`, kernel events are followed where they can be; without, procfs alone serves,
  // which sees the same changes, later.
  static absl::StatusOr<ProcessWatch> Create(const kernel::ProcessHandle& process, bool use_bpf);

  // FailedPrecondition once the process has executed another program: what was copied so far is of
  // a process that is no more. TargetExited.
  absl::Status CheckSameProgram();

  // Its child processes. A process tree cannot move yet, so they hold the freeze back.
  absl::StatusOr<std::vector<pid_t>> Children() const;

  // Waits until it has no child, at most `timeout`, or until `wake_fd` is readable or shut down.
  // True: it has none. TargetExited.
  absl::StatusOr<bool> WaitForNoChildren(absl::Duration timeout, int wake_fd) const;

 private:
  ProcessWatch(const kernel::ProcessHandle& process, uint64_t start_stack,
               std::optional<kernel::ProcessEvents> events)
      : process_(&process), start_stack_(start_stack), events_(std::move(events)) {}

  const kernel::ProcessHandle* process_;
  // Differs from program to program: exec(2) draws it anew.
  uint64_t start_stack_;
  std::optional<kernel::ProcessEvents> events_;
};

}  // namespace predump

#endif  // PREDUMP_PREDUMP_PROCESS_WATCH_H_
