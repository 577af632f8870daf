// A process that is whole but has not run yet, and the steps by which it is let go.
//
// The handover (DESIGN 10, step 2) calls, in this order, recording its fate in between:
//   QueueLateSignals   signals that came to the source after the capture
//   QueueStop          from here a dead server leaves the process parked in state T, not running,
//                      and a parked process needs nothing but a wake-up (FinishParked)
//   ClearExitKill      from here it outlives us
//   Release            it runs
// I1: until ClearExitKill has returned, destroying this kills the process; afterwards it stays
//     parked.
// I2: at QueueStop the trampoline is already unmapped, registers and masks are final.
#ifndef PREDUMP_RESTORE_BUILT_PROCESS_H_
#define PREDUMP_RESTORE_BUILT_PROCESS_H_

#include <sys/types.h>

#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/session.pb.h"
#include "src/kernel/process.h"

namespace predump::restore {

namespace internal {
class LandingProcess;
class Builder;
}  // namespace internal

class BuiltProcess {
 public:
  BuiltProcess(BuiltProcess&&) noexcept;
  BuiltProcess& operator=(BuiltProcess&&) noexcept;
  ~BuiltProcess();

  // As our pid namespace numbers it.
  pid_t pid() const;
  // The process's parent, a child of ours; it ends after the process.
  pid_t reaper_pid() const;
  // How long the steps of the building took, in order.
  const std::vector<proto::Phase>& phases() const;

  // Queues signals as they were at the source, siginfo and all. Errors: InvalidArgument.
  absl::Status QueueLateSignals(std::span<const proto::LateSignal> signals);
  // Removes the trampoline and queues a process-wide SIGSTOP while all threads are held.
  absl::Status QueueStop();
  // PTRACE_O_EXITKILL off, on every thread.
  absl::Status ClearExitKill();
  // Takes the queued stop back and detaches: it runs.
  absl::Status Release() &&;

  // For a server started anew that finds the process in state T after QueueStop: lets it run.
  // FailedPrecondition where it is not stopped.
  static absl::Status FinishParked(const kernel::ProcessHandle& process, absl::Duration timeout);

 private:
  friend class Landing;
  explicit BuiltProcess(std::unique_ptr<internal::LandingProcess> process);
  std::unique_ptr<internal::LandingProcess> process_;
};

}  // namespace predump::restore

#endif  // PREDUMP_RESTORE_BUILT_PROCESS_H_
