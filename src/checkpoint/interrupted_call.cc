#include "src/checkpoint/interrupted_call.h"

#include <sys/syscall.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <span>

#include "src/base/units.h"
#include "src/kernel/bpf/task_capture.h"
#include "src/kernel/process_memory.h"
#include "src/kernel/restart.h"

namespace predump::checkpoint {
namespace {

constexpr int64_t kErestartNoHand = 514;
constexpr int64_t kErestartRestartblock = 516;

bool IsRestart(int64_t result) {
  return result == -512 || result == -513 || result == -514 || result == -kErestartRestartblock;
}

std::optional<absl::Duration> TimespecAt(const kernel::ProcessHandle& process, uint64_t address) {
  struct timespec value;
  if (address == 0 ||
      !kernel::ReadProcessMemoryExactly(process, base::RemoteAddress(address),
                                        std::as_writable_bytes(std::span(&value, 1)))
           .ok()) {
    return std::nullopt;
  }
  return absl::DurationFromTimespec(value);
}

// The relative timeout that calls returning EINTR after a stop were given.
std::optional<absl::Duration> RelativeTimeout(const kernel::ProcessHandle& process,
                                              const user_regs_struct& r) {
  switch (r.orig_rax) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait: {
      const int32_t milliseconds = static_cast<int32_t>(r.r10);
      if (milliseconds < 0) return std::nullopt;
      return absl::Milliseconds(milliseconds);
    }
    case SYS_epoll_pwait2:
    case SYS_semtimedop:
      return TimespecAt(process, r.r10);
    case SYS_rt_sigtimedwait:
      return TimespecAt(process, r.rdx);
    case SYS_io_getevents:
    case SYS_io_pgetevents:
      return TimespecAt(process, r.r8);
    default:
      return std::nullopt;
  }
}

// A call that was stopped before went on as restart_syscall(2), its arguments still in the
// registers. A rebuilt thread has no restart block and must repeat the first call; which that was
// follows from what the kernel kept.
user_regs_struct AsFirstCalled(const user_regs_struct& stopped, const CallContext& context) {
  user_regs_struct registers = stopped;
  if (stopped.orig_rax != SYS_restart_syscall) return registers;
  switch (kernel::RestartKindOf(context.record->restart)) {
    case kernel::RestartKind::kNanosleep:
      // nanosleep's first argument is a pointer, clock_nanosleep's a small number.
      registers.orig_rax = stopped.rdi < base::PageSize() ? SYS_clock_nanosleep : SYS_nanosleep;
      break;
    case kernel::RestartKind::kCpuNanosleep:
    case kernel::RestartKind::kAlarmNanosleep:
      registers.orig_rax = SYS_clock_nanosleep;
      break;
    case kernel::RestartKind::kPoll:
      registers.orig_rax = SYS_poll;
      break;
    case kernel::RestartKind::kFutex:
      registers.orig_rax = SYS_futex;
      break;
    case kernel::RestartKind::kNone:
    case kernel::RestartKind::kUnknown:
      break;
  }
  return registers;
}

}  // namespace

std::optional<absl::Duration> RemainingTime(const kernel::ProcessHandle& process,
                                            const user_regs_struct& stopped,
                                            const CallContext& context) {
  const int64_t result = static_cast<int64_t>(stopped.rax);
  if (result == -kErestartRestartblock) {
    const auto deadline = kernel::RestartDeadlineOf(context.record->restart);
    if (!deadline.has_value()) return std::nullopt;
    const auto then = context.instant->HostClock(deadline->clock);
    if (!then.has_value()) return std::nullopt;
    return absl::Nanoseconds(
        std::max<int64_t>(0, static_cast<int64_t>(deadline->expires_ns) - *then));
  }
  // The freeze has turned the EINTR of the stop into ERESTARTNOHAND.
  if ((result != -EINTR && result != -kErestartNoHand) ||
      !kernel::ReturnsEintrAfterStop(stopped.orig_rax)) {
    return std::nullopt;
  }
  const auto timeout = RelativeTimeout(process, stopped);
  if (!timeout.has_value()) return std::nullopt;
  if (!context.asleep_since_ns.has_value()) return *timeout;
  const int64_t then = *context.instant->HostClock(CLOCK_MONOTONIC);
  const absl::Duration slept = absl::Nanoseconds(
      std::max<int64_t>(0, then - static_cast<int64_t>(*context.asleep_since_ns)));
  return std::max(absl::ZeroDuration(), *timeout - slept);
}

ResumePoint ResumeElsewhere(const kernel::ProcessHandle& process,
                            const user_regs_struct& as_stopped, const CallContext& context) {
  const user_regs_struct stopped = AsFirstCalled(as_stopped, context);
  const auto remaining = RemainingTime(process, stopped, context);
  const kernel::RestartPlan plan = kernel::RestartRegisters(
      stopped, {.same_task = false,
                .unblocked_signal_pending = context.unblocked_signal_pending,
                .remaining = remaining});
  ResumePoint point{.registers = plan.registers, .call = std::nullopt};
  if (static_cast<int64_t>(stopped.orig_rax) < 0 ||
      (!plan.repeats_call && !IsRestart(static_cast<int64_t>(stopped.rax)))) {
    return point;
  }
  proto::InterruptedCall& call = point.call.emplace();
  call.set_number(static_cast<int64_t>(stopped.orig_rax));
  call.set_result(static_cast<int64_t>(stopped.rax));
  if (remaining.has_value()) call.set_remaining_ns(absl::ToInt64Nanoseconds(*remaining));
  return point;
}

}  // namespace predump::checkpoint
