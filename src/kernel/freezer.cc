#include "src/kernel/freezer.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <time.h>

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/kernel/procfs_task.h"
#include "src/kernel/unstopped_threads.h"

namespace predump::kernel {
namespace {

constexpr uint64_t kFreezeOptions = PTRACE_O_TRACESYSGOOD;
// How long a killed process gives back its memory only where nobody else needs the processor.
constexpr absl::Duration kGiveWayFor = absl::Seconds(2);

// All are stopped, unless they were killed: then their end is waited for.
constexpr absl::Duration kThawPatience = absl::Seconds(10);

constexpr uint64_t SignalBit(int signal_number) { return 1ull << (signal_number - 1); }

// Refuses what a freeze could not do or would not undo.
absl::Status CheckFreezable(const ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(const StatusFields status, ReadStatus(process));
  if (status.tracer_pid != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("process ", process.pid(), " is traced by process ", status.tracer_pid));
  }
  if (status.state == 'Z' || status.state == 'X') {
    PREDUMP_ASSIGN_OR_RETURN(const bool exited, process.HasExited());
    if (exited) {
      return base::TargetExited(absl::StrCat("process ", process.pid(), " has exited"));
    }
    return absl::FailedPreconditionError(
        absl::StrCat("the leader thread of process ", process.pid(), " has exited"));
  }
  return absl::OkStatus();
}

// Waits while a thread is in an uninterruptible wait, which is looked for while everything still
// runs (unstopped_threads.h).
absl::Status WaitUntilStoppable(const ProcessHandle& process, absl::Duration timeout,
                                int64_t deadline) {
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<pid_t> tids, ListThreads(process));
  for (const pid_t tid : tids) {
    while (WaitsUninterruptibly(process, tid)) {
      if (base::MonotonicNanoseconds() >= deadline) return DidNotStop(process, tid, timeout);
      // No descriptor or signal tells the end of such a wait.
      const struct timespec pause = {0, 500'000};
      ::nanosleep(&pause, nullptr);
    }
  }
  return absl::OkStatus();
}

// Waits until a process is parked.
absl::Status WaitUntilParked(const ProcessHandle& process, absl::Duration timeout) {
  const int64_t start = base::MonotonicNanoseconds();
  for (;;) {
    PREDUMP_ASSIGN_OR_RETURN(const ParkCondition condition, ParkConditionOf(process));
    const absl::Duration waited = absl::Nanoseconds(base::MonotonicNanoseconds() - start);
    switch (condition) {
      case ParkCondition::kParked:
        return absl::OkStatus();
      case ParkCondition::kExited:
        return base::TargetExited(absl::StrCat("process ", process.pid(), " has exited"));
      case ParkCondition::kGoing:
        if (waited < std::min(kStopGrace, timeout)) break;
        return absl::FailedPreconditionError(
            absl::StrCat("process ", process.pid(), " is not stopped"));
      case ParkCondition::kHeld:
        if (waited < timeout) break;
        return absl::DeadlineExceededError(
            absl::StrCat("process ", process.pid(), " is traced by somebody or about to stop"));
    }
    // Its exit ends the wait; nothing tells us of its stop.
    PREDUMP_RETURN_IF_ERROR(process.WaitForExit(absl::Milliseconds(1)));
  }
}

}  // namespace

absl::StatusOr<ParkCondition> ParkConditionOf(const ProcessHandle& process) {
  const absl::StatusOr<StatusFields> status = ReadStatus(process);
  if (base::IsTargetExited(status.status())) return ParkCondition::kExited;
  PREDUMP_RETURN_IF_ERROR(status);
  if (status->state == 'Z' || status->state == 'X') return ParkCondition::kExited;
  if (status->tracer_pid != 0 || status->state == 't') return ParkCondition::kHeld;
  // These cannot be blocked: pending means on the way to being dead, or stopped.
  constexpr uint64_t kDecided = SignalBit(SIGKILL) | SignalBit(SIGSTOP);
  if (((status->pending_thread | status->pending_process) & kDecided) != 0) {
    return ParkCondition::kHeld;
  }
  return status->state == 'T' ? ParkCondition::kParked : ParkCondition::kGoing;
}

absl::StatusOr<FrozenProcess> FrozenProcess::Freeze(const ProcessHandle& process,
                                                    absl::Duration timeout) {
  const int64_t deadline = base::MonotonicNanoseconds() + absl::ToInt64Nanoseconds(timeout);
  PREDUMP_RETURN_IF_ERROR(CheckFreezable(process));
  PREDUMP_RETURN_IF_ERROR(WaitUntilStoppable(process, timeout, deadline));
  FrozenProcess frozen(process);
  // Only running threads make threads: once all that the kernel counts have stopped, there will be
  // no more. A listing that shows no new one is not enough: it ends early at a thread that exits
  // while it is read, and hides the successor that this one has made.
  for (;;) {
    PREDUMP_ASSIGN_OR_RETURN(const bool leader_exited, frozen.SeizeNewThreads(timeout, deadline));
    PREDUMP_ASSIGN_OR_RETURN(const StatFields stat, ReadStat(process));
    const size_t stopped = frozen.threads_.size() + (leader_exited ? 1 : 0);
    if (static_cast<size_t>(stat.thread_count) <= stopped) break;
    if (base::MonotonicNanoseconds() > deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("process ", process.pid(), " made threads faster than they could be stopped",
                       " for ", absl::FormatDuration(timeout)));
    }
  }
  if (frozen.threads_.empty()) {
    return base::TargetExited(absl::StrCat("process ", process.pid(), " has exited"));
  }
  std::sort(frozen.threads_.begin(), frozen.threads_.end(),
            [leader = process.pid()](const Tracee& a, const Tracee& b) {
              return std::pair(a.tid() != leader, a.tid()) < std::pair(b.tid() != leader, b.tid());
            });
  if (frozen.threads_.front().tid() != process.pid()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the leader thread of process ", process.pid(), " has exited"));
  }
  return frozen;
}

absl::StatusOr<bool> FrozenProcess::SeizeNewThreads(absl::Duration timeout, int64_t deadline) {
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<pid_t> tids, ListThreads(*process_));
  std::vector<pid_t> known;
  for (const Tracee& thread : threads_) known.push_back(thread.tid());
  std::sort(known.begin(), known.end());
  const size_t first_new = threads_.size();
  bool leader_exited = false;
  for (const pid_t tid : tids) {
    if (std::binary_search(known.begin(), known.end(), tid)) continue;
    absl::StatusOr<Tracee> thread = Tracee::Seize(tid, kFreezeOptions);
    // A thread that exits meanwhile is none of the process any more. A zombie leader refuses
    // (EPERM) and is told apart by the caller, which then misses it.
    if (base::IsTargetExited(thread.status())) continue;
    if (base::ErrnoOf(thread.status()) == EPERM) {
      const absl::StatusOr<StatFields> stat = ReadThreadStat(*process_, tid);
      if (!stat.ok() || stat->state == 'Z' || stat->state == 'X') {
        leader_exited |= tid == process_->pid();
        continue;
      }
    }
    PREDUMP_RETURN_IF_ERROR(thread);
    if (threads_.empty()) stopped_since_ = base::Stopwatch();
    const absl::Status interrupted = thread->Interrupt();
    threads_.push_back(*std::move(thread));
    if (!interrupted.ok() && !base::IsTargetExited(interrupted)) return interrupted;
  }
  for (size_t i = first_new; i < threads_.size();) {
    const pid_t tid = threads_[i].tid();
    const int64_t left = std::max<int64_t>(deadline - base::MonotonicNanoseconds(), 0);
    const absl::StatusOr<WaitEvent> stop = threads_[i].WaitForEventStop(absl::Nanoseconds(left));
    if (stop.ok()) {
      was_stopped_ |= stop->IsGroupStop();
      // Now, not at the thaw: should we be killed, the thread goes on with the registers it has.
      const absl::Status status = threads_[i].RepeatInterruptedCall();
      if (!status.ok() && !base::IsTargetExited(status)) return status;
      ++i;
    } else if (base::IsTargetExited(stop.status())) {
      threads_.erase(threads_.begin() + static_cast<ptrdiff_t>(i));
    } else if (absl::IsDeadlineExceeded(stop.status())) {
      return DidNotStop(*process_, tid, timeout);
    } else {
      return stop.status();
    }
  }
  return leader_exited;
}

FrozenProcess::~FrozenProcess() {
  // Nobody is left to tell; every step that works is taken. A queued SIGSTOP stays queued: whoever
  // asked for it wants "stopped" to outlive the object as well.
  DetachAll(absl::Seconds(1)).IgnoreError();
}

absl::Status FrozenProcess::DetachAll(absl::Duration patience) {
  absl::Status first_error;
  UnstoppedThreads unstopped;
  // The leader last: killed, it is reported only after all others were waited for.
  for (auto thread = threads_.rbegin(); thread != threads_.rend(); ++thread) {
    if (thread->tid() == 0) continue;
    // A thread that ran since the freeze, to swallow a signal, was interrupted once more.
    absl::Status status = thread->RepeatInterruptedCall();
    if (!base::IsTargetExited(status)) first_error.Update(status);
    // One that does not stop, for which a freeze was given up, keeps no other one waiting.
    status = thread->Detach(0, absl::ZeroDuration());
    if (absl::IsDeadlineExceeded(status)) {
      unstopped.Add(std::move(*thread));
    } else {
      first_error.Update(status);
    }
  }
  threads_.clear();
  if (unstopped.empty()) return first_error;
  first_error.Update(
      unstopped.LetGoOfAll(base::MonotonicNanoseconds() + absl::ToInt64Nanoseconds(patience)));
  PREDUMP_ASSIGN_OR_RETURN(const bool exited, process_->HasExited());
  if (exited) {
    first_error.Update(
        base::TargetExited(absl::StrCat("process ", process_->pid(), " has exited")));
  }
  return first_error;
}

absl::Status FrozenProcess::Thaw() && { return DetachAll(kThawPatience); }

absl::Status FrozenProcess::QueueStop() {
  // A process that is stopped already stays so when it is let go of.
  if (was_stopped_ || stop_queued_) return absl::OkStatus();
  PREDUMP_RETURN_IF_ERROR(process_->SendSignal(SIGSTOP));
  stop_queued_ = true;
  return absl::OkStatus();
}

absl::Status FrozenProcess::SwallowSignal(Tracee& thread, int signal_number) {
  PREDUMP_RETURN_IF_ERROR(thread.Continue());
  for (;;) {
    PREDUMP_ASSIGN_OR_RETURN(const WaitEvent event, thread.WaitForStop(absl::Seconds(2)));
    const bool is_signal = event.kind == WaitEvent::Kind::kSignalStop;
    if (is_signal && event.code == signal_number) break;
    // Signals with lower numbers come first; they are delivered now instead of a moment later. The
    // interrupt keeps the thread from running a handler.
    if (is_signal) PREDUMP_RETURN_IF_ERROR(thread.Interrupt());
    PREDUMP_RETURN_IF_ERROR(thread.Continue(is_signal ? event.code : 0));
  }
  PREDUMP_RETURN_IF_ERROR(thread.Interrupt());
  PREDUMP_RETURN_IF_ERROR(thread.Continue(0));
  PREDUMP_ASSIGN_OR_RETURN(const WaitEvent event, thread.WaitForStop(absl::Seconds(2)));
  if (event.kind == WaitEvent::Kind::kEventStop) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("after dropping a signal: ", event.ToString()));
}

absl::Status FrozenProcess::SwallowStopAndThaw() && {
  if (stop_queued_) {
    PREDUMP_RETURN_IF_ERROR(SwallowSignal(threads_.front(), SIGSTOP));
    stop_queued_ = false;
  }
  return DetachAll(kThawPatience);
}

void FrozenProcess::SetPolicy(int policy) const {
  const struct sched_param none = {};
  for (const Tracee& thread : threads_) {
    // Only how soon its memory is free depends on this.
    if (thread.tid() != 0) ::sched_setscheduler(thread.tid(), policy, &none);
  }
}

absl::Status FrozenProcess::Kill() && {
  // Giving back memory keeps a processor busy for a tenth of a second per GiB. Whoever else needs
  // it, above all the resumed process where both hosts are one machine, comes first for a while.
  SetPolicy(SCHED_IDLE);
  PREDUMP_RETURN_IF_ERROR(process_->SendSignal(SIGKILL));
  bool gives_way = true;
  // The leader is reported only after all others were waited for.
  for (auto thread = threads_.rbegin(); thread != threads_.rend(); ++thread) {
    while (thread->tid() != 0) {
      const absl::Status status =
          thread->WaitForStop(gives_way ? kGiveWayFor : absl::Seconds(10)).status();
      if (gives_way && absl::IsDeadlineExceeded(status)) {
        SetPolicy(SCHED_OTHER);
        gives_way = false;
      } else if (!status.ok() && !base::IsTargetExited(status)) {
        return status;
      }
    }
  }
  threads_.clear();
  PREDUMP_ASSIGN_OR_RETURN(const bool exited, process_->WaitForExit(absl::Seconds(10)));
  if (exited) return absl::OkStatus();
  return absl::DeadlineExceededError(
      absl::StrCat("process ", process_->pid(), " was killed but has not exited"));
}

absl::StatusOr<FrozenProcess> FrozenProcess::FreezeParked(const ProcessHandle& process,
                                                          absl::Duration timeout) {
  PREDUMP_RETURN_IF_ERROR(WaitUntilParked(process, timeout));
  absl::StatusOr<FrozenProcess> frozen = Freeze(process, timeout);
  if (absl::IsFailedPrecondition(frozen.status())) {
    // Somebody attached to it meanwhile; that does not make it one that goes on.
    return absl::DeadlineExceededError(frozen.status().message());
  }
  PREDUMP_RETURN_IF_ERROR(frozen);
  if (!frozen->was_stopped_) {
    return absl::FailedPreconditionError(
        absl::StrCat("process ", process.pid(), " is not stopped"));
  }
  return frozen;
}

absl::Status FrozenProcess::UnparkAndResume(const ProcessHandle& process, absl::Duration timeout) {
  PREDUMP_ASSIGN_OR_RETURN(FrozenProcess frozen, FreezeParked(process, timeout));
  // A thread that does not block SIGCONT needs no mask of its own changed.
  Tracee* taker = nullptr;
  for (Tracee& thread : frozen.threads_) {
    PREDUMP_ASSIGN_OR_RETURN(const uint64_t mask, thread.GetSignalMask());
    if ((mask & SignalBit(SIGCONT)) == 0) {
      taker = &thread;
      break;
    }
  }
  if (taker != nullptr) {
    PREDUMP_RETURN_IF_ERROR(process.SendSignal(SIGCONT));
    PREDUMP_RETURN_IF_ERROR(frozen.SwallowSignal(*taker, SIGCONT));
    return std::move(frozen).Thaw();
  }
  Tracee& leader = frozen.threads_.front();
  PREDUMP_ASSIGN_OR_RETURN(const uint64_t mask, leader.GetSignalMask());
  PREDUMP_RETURN_IF_ERROR(leader.SetSignalMask(mask & ~SignalBit(SIGCONT)));
  absl::Status status = process.SendSignal(SIGCONT);
  status.Update(status.ok() ? frozen.SwallowSignal(leader, SIGCONT) : absl::OkStatus());
  status.Update(leader.SetSignalMask(mask));
  status.Update(std::move(frozen).Thaw());
  return status;
}

absl::Status FrozenProcess::KillParked(const ProcessHandle& process, absl::Duration timeout) {
  PREDUMP_ASSIGN_OR_RETURN(FrozenProcess frozen, FreezeParked(process, timeout));
  return std::move(frozen).Kill();
}

CpuFollower::CpuFollower(const ProcessHandle& process, pid_t tid) {
  if (::pthread_getaffinity_np(::pthread_self(), sizeof before_, &before_) != 0) return;
  const absl::StatusOr<StatFields> stat = ReadThreadStat(process, tid);
  if (!stat.ok() || stat->last_cpu < 0 || stat->last_cpu >= CPU_SETSIZE) return;
  cpu_set_t only;
  CPU_ZERO(&only);
  CPU_SET(static_cast<size_t>(stat->last_cpu), &only);
  moved_ = ::pthread_setaffinity_np(::pthread_self(), sizeof only, &only) == 0;
}

CpuFollower::~CpuFollower() {
  if (moved_) ::pthread_setaffinity_np(::pthread_self(), sizeof before_, &before_);
}

}  // namespace predump::kernel
