// Stopping all threads of a process, and letting it go on as if nothing had happened.
//
// I1: a FrozenProcess holds every thread of the process in a ptrace stop; no user instruction runs.
// I2: thawing loses and doubles no signal, and interrupted calls go on (see restart.h).
// I3: if the freezing process dies, the target simply runs on, unless QueueStop was called: then it
//     stays stopped (state T, no user instruction run) until UnparkAndResume or KillParked.
// I4: a process that was stopped by a stop signal before the freeze is stopped after the thaw.
// Thread rule: one thread for Freeze and everything after (ptrace's rule).
#ifndef PREDUMP_KERNEL_FREEZER_H_
#define PREDUMP_KERNEL_FREEZER_H_

#include <sched.h>

#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "src/base/clock.h"
#include "src/kernel/process.h"
#include "src/kernel/ptrace.h"

namespace predump::kernel {

// How a process stands whose tracer may have died with a SIGSTOP queued for it.
enum class ParkCondition {
  kExited,
  kHeld,    // traced still, or on its way to the stop (or death) that is pending for it
  kParked,  // stopped (state T), nobody traces it
  kGoing,   // neither; right after its tracer died, it may still be on its way to the stop
};

// One look. There is no event for "has stopped" to anybody but parent and tracer.
absl::StatusOr<ParkCondition> ParkConditionOf(const ProcessHandle& process);

// A process let go of by a dying tracer still runs through the kernel on its way to the stop that
// was queued for it. One that has not stopped after this long was woken by somebody's SIGCONT.
inline constexpr absl::Duration kStopGrace = absl::Milliseconds(500);

class FrozenProcess {
 public:
  FrozenProcess(FrozenProcess&&) noexcept = default;
  FrozenProcess& operator=(FrozenProcess&&) noexcept = default;
  // Thaws as Thaw() does where it was not done.
  ~FrozenProcess();

  // Seizes and interrupts threads until /proc/PID/task shows no new one. `process` outlives the
  // result. Errors: TargetExited; DeadlineExceeded a thread did not stop within `timeout` (named
  // with tid, comm and wait channel; everything was thawed); FailedPrecondition somebody else
  // traces it (named), or its leader thread has exited.
  static absl::StatusOr<FrozenProcess> Freeze(const ProcessHandle& process, absl::Duration timeout);

  // Leader first, then ascending by thread id. All are in PTRACE_EVENT_STOP.
  std::span<Tracee> threads() { return threads_; }
  const ProcessHandle& process() const { return *process_; }
  // Since its first thread was told to stop.
  base::Stopwatch stopped_since() const { return stopped_since_; }
  // A stop signal had stopped the process before the freeze.
  bool was_stopped() const { return was_stopped_; }

  // Detaches from all threads.
  absl::Status Thaw() &&;

  // Makes "stopped" outlive us: queues a process-wide SIGSTOP. Only the threads' detachment or our
  // death makes it act. (A SIGCONT that was blocked and pending is discarded, as by any SIGSTOP.)
  absl::Status QueueStop();
  // Takes the queued SIGSTOP back and thaws; the process runs on with nothing left of it.
  absl::Status SwallowStopAndThaw() &&;
  // Kills the process with all threads held and waits until they are gone (non-leaders first).
  absl::Status Kill() &&;

  // Lets a process go on that a dead engine left in state T, or on its way there: the SIGCONT this
  // needs is never seen by the application. Errors: FailedPrecondition it is not stopped and was
  // not about to be: it goes on already; DeadlineExceeded somebody traces it (named); TargetExited.
  static absl::Status UnparkAndResume(const ProcessHandle& process, absl::Duration timeout);
  // Ends a parked process; errors as UnparkAndResume, so that nothing that runs is ever killed by
  // this. Returns when it has exited.
  static absl::Status KillParked(const ProcessHandle& process, absl::Duration timeout);

 private:
  explicit FrozenProcess(const ProcessHandle& process) : process_(&process) {}

  static absl::StatusOr<FrozenProcess> FreezeParked(const ProcessHandle& process,
                                                    absl::Duration timeout);
  // Those of one listing. True: the leader has exited, which leaves it among the threads.
  absl::StatusOr<bool> SeizeNewThreads(absl::Duration timeout, int64_t deadline);
  // Runs one thread until it is about to receive `signal_number`, drops that and stops it again.
  absl::Status SwallowSignal(Tracee& thread, int signal_number);
  absl::Status DetachAll(absl::Duration patience);
  void SetPolicy(int policy) const;  // SCHED_*, of all threads

  const ProcessHandle* process_;
  std::vector<Tracee> threads_;
  base::Stopwatch stopped_since_;
  bool was_stopped_ = false;
  bool stop_queued_ = false;
};

// Moves the calling thread to the CPU a thread of the target last ran on, where a remote call costs
// 6 us instead of 45, and puts the affinity back when it goes out of scope. Where the CPU is not
// allowed to us nothing is moved: it is only slower.
class CpuFollower {
 public:
  CpuFollower(const ProcessHandle& process, pid_t tid);
  explicit CpuFollower(const ProcessHandle& process) : CpuFollower(process, process.pid()) {}
  CpuFollower(const CpuFollower&) = delete;
  CpuFollower& operator=(const CpuFollower&) = delete;
  ~CpuFollower();

  bool moved() const { return moved_; }

 private:
  cpu_set_t before_;
  bool moved_ = false;
};

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_FREEZER_H_
