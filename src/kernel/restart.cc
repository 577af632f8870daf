#include "src/kernel/restart.h"

#include <errno.h>
#include <sys/syscall.h>

#include <algorithm>

namespace predump::kernel {
namespace {

// include/linux/errno.h of the kernel: never seen by a program, but by its tracer.
constexpr int64_t kErestartsys = 512;
constexpr int64_t kErestartnointr = 513;
constexpr int64_t kErestartnohand = 514;
constexpr int64_t kErestartRestartblock = 516;

constexpr uint64_t kSyscallInstructionBytes = 2;
constexpr uint64_t kNoSystemCall = ~0ull;

bool InSystemCall(const user_regs_struct& registers) {
  return static_cast<int64_t>(registers.orig_rax) >= 0;
}

int64_t ErrorOf(const user_regs_struct& registers) { return -static_cast<int64_t>(registers.rax); }

void Repeat(uint64_t number, RestartPlan* plan) {
  plan->registers.rax = number;
  plan->registers.rip -= kSyscallInstructionBytes;
  plan->repeats_call = true;
}

// Where a call keeps a relative timeout that begins anew when the call is repeated.
void PatchRelativeTimeout(const RestartContext& context, RestartPlan* plan) {
  user_regs_struct& r = plan->registers;
  const auto milliseconds = [&](unsigned long long* argument) {
    plan->timeout = RestartPlan::Timeout::kMillisecondsInRegister;
    if (!context.remaining.has_value()) return;
    const absl::Duration left = std::max(*context.remaining, absl::ZeroDuration());
    *argument =
        static_cast<uint64_t>(absl::ToInt64Milliseconds(absl::Ceil(left, absl::Milliseconds(1))));
  };
  switch (r.orig_rax) {
    case SYS_poll:
    case SYS_epoll_wait:
    case SYS_epoll_pwait: {
      unsigned long long* argument = r.orig_rax == SYS_poll ? &r.rdx : &r.r10;
      if (static_cast<int32_t>(*argument) > 0) milliseconds(argument);
      return;
    }
    default:
      break;
  }
  if (const auto* argument = RelativeTimespecArgument(r.orig_rax, r); argument != nullptr) {
    plan->timeout = RestartPlan::Timeout::kTimespecInMemory;
    plan->timeout_address = *argument;
  }
}

}  // namespace

unsigned long long* RelativeTimespecArgument(uint64_t number, user_regs_struct& r) {
  constexpr uint64_t kTimerAbstime = 1;
  constexpr uint64_t kFutexCommandMask = 0x7f;  // without PRIVATE_FLAG and CLOCK_REALTIME
  const auto given = [](unsigned long long& argument) {
    return argument == 0 ? nullptr : &argument;
  };
  switch (number) {
    case SYS_nanosleep:
      return given(r.rdi);
    case SYS_clock_nanosleep:
      return (r.rsi & kTimerAbstime) != 0 ? nullptr : given(r.rdx);
    case SYS_futex:  // FUTEX_WAIT is relative, FUTEX_WAIT_BITSET and the rest are absolute
      return (r.rsi & kFutexCommandMask) == 0 ? given(r.r10) : nullptr;
    case SYS_epoll_pwait2:
    case SYS_semtimedop:
      return given(r.r10);
    case SYS_rt_sigtimedwait:
      return given(r.rdx);
    case SYS_io_getevents:
    case SYS_io_pgetevents:
      return given(r.r8);
    default:
      return nullptr;
  }
}

uint64_t BelowRedZone(uint64_t stack_pointer, uint64_t bytes) {
  constexpr uint64_t kRedZone = 128;
  return (stack_pointer - kRedZone - bytes) & ~uint64_t{15};
}

user_regs_struct RebuiltRestartRegisters(const user_regs_struct& repeating, uint64_t number,
                                         int64_t result) {
  const int64_t error = -result;
  if (repeating.rax != number ||
      (error != kErestartsys && error != kErestartnointr && error != kErestartnohand &&
       error != kErestartRestartblock && error != EINTR)) {
    return repeating;
  }
  user_regs_struct registers = repeating;
  registers.orig_rax = number;
  registers.rip += kSyscallInstructionBytes;
  const bool by_its_own_rule = error == kErestartsys || error == kErestartnointr;
  registers.rax = static_cast<uint64_t>(by_its_own_rule ? result : -kErestartnohand);
  return registers;
}

bool ReturnsEintrAfterStop(uint64_t number) {
  switch (number) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
    case SYS_epoll_pwait2:
    case SYS_rt_sigtimedwait:  // sigwaitinfo as well
    case SYS_semop:
    case SYS_semtimedop:
    case SYS_io_getevents:
    case SYS_io_pgetevents:
    // Sockets with SO_RCVTIMEO or SO_SNDTIMEO. EINTR from these means that nothing was moved.
    case SYS_read:
    case SYS_readv:
    case SYS_recvfrom:
    case SYS_recvmsg:
    case SYS_recvmmsg:
    case SYS_accept:
    case SYS_accept4:
    case SYS_write:
    case SYS_writev:
    case SYS_sendto:
    case SYS_sendmsg:
    case SYS_sendmmsg:
    case SYS_connect:  // repeated, it goes on waiting for the same connection
    case SYS_preadv2:  // with offset -1 like readv(2) and writev(2)
    case SYS_pwritev2:
    case SYS_sendfile:
    case SYS_splice:
      return true;
    default:
      return false;
  }
}

RestartPlan RestartRegisters(const user_regs_struct& stopped, const RestartContext& context) {
  RestartPlan plan{.registers = stopped};
  if (InSystemCall(stopped)) {
    const int64_t error = ErrorOf(stopped);
    // The freeze has turned EINTR into ERESTARTNOHAND where it was the stop's (freezer.cc).
    const bool told_of_stop =
        ReturnsEintrAfterStop(stopped.orig_rax) && (error == EINTR || error == kErestartnohand);
    if (told_of_stop && context.unblocked_signal_pending) {
      plan.registers.rax = static_cast<uint64_t>(-int64_t{EINTR});
    } else if (told_of_stop) {
      PatchRelativeTimeout(context, &plan);
      Repeat(stopped.orig_rax, &plan);
    } else if (error == kErestartsys || error == kErestartnointr || error == kErestartnohand) {
      // Calls of this kind with a timeout have it absolute, or the kernel wrote back what is left.
      Repeat(stopped.orig_rax, &plan);
    } else if (error == kErestartRestartblock) {
      if (!context.same_task) PatchRelativeTimeout(context, &plan);
      Repeat(context.same_task ? SYS_restart_syscall : stopped.orig_rax, &plan);
    }
  }
  plan.registers.orig_rax = kNoSystemCall;
  return plan;
}

std::optional<user_regs_struct> NativeRestartRegisters(const user_regs_struct& stopped) {
  if (!InSystemCall(stopped) || ErrorOf(stopped) != EINTR ||
      !ReturnsEintrAfterStop(stopped.orig_rax)) {
    return std::nullopt;
  }
  user_regs_struct registers = stopped;
  registers.rax = static_cast<uint64_t>(-kErestartnohand);
  return registers;
}

}  // namespace predump::kernel
