// What to put into the registers of a thread that was stopped inside a system call.
//
// A thread stopped by PTRACE_INTERRUPT inside a blocked call has the kernel's own restart code in
// rax. A tracer that detaches with untouched registers leaves the rest to the kernel; whoever runs
// the thread elsewhere, or runs something else in it first, has to do the kernel's part.
//
// Thread rule: pure functions.
#ifndef PREDUMP_KERNEL_RESTART_H_
#define PREDUMP_KERNEL_RESTART_H_

#include <sys/user.h>

#include <cstdint>
#include <optional>

#include "absl/time/time.h"

namespace predump::kernel {

struct RestartContext {
  // The very same task goes on, so that restart_syscall(2) finds its restart block. False for a
  // thread that was rebuilt elsewhere.
  bool same_task = true;
  // An unblocked signal waits for this thread: calls that report EINTR shall report it.
  bool unblocked_signal_pending = false;
  // How much of the call's relative timeout is left, where known.
  std::optional<absl::Duration> remaining = std::nullopt;
};

struct RestartPlan {
  user_regs_struct registers;  // orig_rax is -1: the kernel adds nothing of its own
  bool repeats_call = false;   // rip was moved back to the syscall instruction

  // A relative timeout that would begin anew. kMillisecondsInRegister is already patched into
  // `registers` where `remaining` was given; kTimespecInMemory is for the caller to do: the
  // timespec that `timeout_address` points to belongs to the application, so the call is run with a
  // copy (RelativeTimespecArgument).
  enum class Timeout { kNone, kMillisecondsInRegister, kTimespecInMemory };
  Timeout timeout = Timeout::kNone;
  uint64_t timeout_address = 0;
};

// True if `number` is a call that returns EINTR after a mere stop (signal(7), "Interruption of
// system calls and library functions by stop signals"), so that -EINTR without a signal is ours.
bool ReturnsEintrAfterStop(uint64_t number);

// Registers with which the thread can be started by hand (by whoever sets rip), DESIGN 12.8.
RestartPlan RestartRegisters(const user_regs_struct& stopped, const RestartContext& context);

// The register in which call `number` gets the address of a relative timeout, a struct timespec the
// kernel reads once, as the call begins; nullptr where there is none.
unsigned long long* RelativeTimespecArgument(uint64_t number, user_regs_struct& registers);

// Where `bytes` may be put on a thread's stack: below the red zone, as a signal frame would be,
// where nobody relies on what is there. 16-byte aligned.
uint64_t BelowRedZone(uint64_t stack_pointer, uint64_t bytes);

// For a thread that was rebuilt with RestartRegisters, which repeat call `number` that was stopped
// with `result`, and that goes on from a stop inside the kernel's signal path: the kernel repeats
// the call if no handler runs and reports EINTR if one does (or repeats, SA_RESTART), as it would
// have at the source. Registers that repeat nothing come back as they are.
user_regs_struct RebuiltRestartRegisters(const user_regs_struct& repeating, uint64_t number,
                                         int64_t result);

// For a thread in PTRACE_EVENT_STOP that will be detached: leaves everything to the kernel, except
// that an -EINTR caused by the stop becomes -ERESTARTNOHAND. The kernel then repeats the call if no
// signal handler runs and reports EINTR if one does, which is decided atomically with delivery.
// Returns nullopt where the registers are right as they are.
std::optional<user_regs_struct> NativeRestartRegisters(const user_regs_struct& stopped);

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_RESTART_H_
