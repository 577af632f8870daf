// One attachment to one thread of another process, by PTRACE_SEIZE.
//
// I1: the destructor detaches: the thread goes on (a thread in group-stop stays stopped).
// I2: seizing alone does not stop a thread; register and mask calls need it stopped.
// Thread rule: every call comes from the thread that called Seize (the kernel's rule).
#ifndef PREDUMP_KERNEL_PTRACE_H_
#define PREDUMP_KERNEL_PTRACE_H_

#include <signal.h>
#include <sys/types.h>
#include <sys/user.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "src/base/units.h"
#include "src/kernel/wait.h"

namespace predump::kernel {

// PTRACE_GET_RSEQ_CONFIGURATION (Linux 5.13); address 0: none registered.
struct RseqConfiguration {
  base::RemoteAddress address;
  uint32_t size = 0;
  uint32_t signature = 0;
  uint32_t flags = 0;
};

enum class PendingQueue { kThread, kProcess };

class Tracee {
 public:
  Tracee(Tracee&& other) noexcept;
  Tracee& operator=(Tracee&& other) noexcept;
  Tracee(const Tracee&) = delete;
  Tracee& operator=(const Tracee&) = delete;
  ~Tracee();

  // PTRACE_SEIZE with PTRACE_O_* `options`.
  // Errors: TargetExited; PermissionDenied (EPERM) also where somebody else traces it.
  static absl::StatusOr<Tracee> Seize(pid_t tid, uint64_t options);
  // Takes over a task that the kernel attached to us (PTRACE_O_TRACECLONE).
  static Tracee AdoptAutoAttached(pid_t tid) { return Tracee(tid); }

  pid_t tid() const { return tid_; }

  absl::Status Interrupt() const;
  // The next event. DeadlineExceeded when `timeout` goes by. An exit is TargetExited, and the
  // attachment is over.
  absl::StatusOr<WaitEvent> WaitForStop(std::optional<absl::Duration> timeout);

  // After Seize and Interrupt: waits until the thread is in PTRACE_EVENT_STOP. A signal it was just
  // taking is delivered first, with its siginfo as it is, but no user instruction runs afterwards.
  // DeadlineExceeded as WaitForStop.
  absl::StatusOr<WaitEvent> WaitForEventStop(absl::Duration timeout);

  absl::StatusOr<user_regs_struct> GetRegisters() const;
  absl::Status SetRegisters(const user_regs_struct& registers) const;
  // NT_X86_XSTATE as the kernel gives it (XSAVE standard format).
  absl::StatusOr<std::vector<std::byte>> GetXstate() const;
  absl::Status SetXstate(std::span<const std::byte> xstate) const;
  // Kernel masks, bit 0 is signal 1. Inside a call with a mask of its own (ppoll, sigsuspend) Get
  // gives the mask that call will put back, and Set makes the call be repeated with its own.
  absl::StatusOr<uint64_t> GetSignalMask() const;
  absl::Status SetSignalMask(uint64_t mask) const;
  // Queued signals, oldest first, left in place (PTRACE_PEEKSIGINFO, Linux 3.10).
  absl::StatusOr<std::vector<siginfo_t>> PeekPendingSignals(PendingQueue queue) const;
  // Of the signal-delivery-stop the thread is in.
  absl::StatusOr<siginfo_t> GetSignalInfo() const;
  absl::StatusOr<RseqConfiguration> GetRseqConfiguration() const;
  // Whether system calls are dispatched to a signal handler (prctl(2),
  // PR_SET_SYSCALL_USER_DISPATCH; told since Linux 6.4, false before).
  absl::StatusOr<bool> UsesSyscallUserDispatch() const;
  // PTRACE_GETEVENTMSG: the new task of a clone event, for one.
  absl::StatusOr<uint64_t> GetEventMessage() const;
  absl::Status SetOptions(uint64_t options) const;

  // Resume; `signal_number` is delivered where the stop was a signal-delivery-stop, 0 drops it.
  absl::Status Continue(int signal_number = 0) const;
  absl::Status ContinueToSyscall(int signal_number = 0) const;
  // What to do about a stop that is not the one waited for: the signal to go on with (0: none).
  using OtherStop = absl::FunctionRef<absl::StatusOr<int>(const WaitEvent&)>;
  // Resumes the stopped thread up to its next syscall-stop (entry or exit of a system call).
  // Anybody may send it SIGSTOP or SIGCONT meanwhile, which stop it first: each stop in between is
  // `other`'s to judge. Needs PTRACE_O_TRACESYSGOOD. DeadlineExceeded as WaitForStop; else what
  // `other` gives.
  absl::Status RunToSyscallStop(absl::Duration timeout, OtherStop other);
  // The same for a thread that ContinueToSyscall has resumed already.
  absl::Status WaitForSyscallStop(absl::Duration timeout, OtherStop other);

  // Lets the thread go; one that is not stopped is stopped first, waiting for `patience` at most.
  // `signal_number` as in Continue. Errors: TargetExited (and it is reaped): the attachment is
  // over; DeadlineExceeded it did not stop: it is still attached, and stops once it can.
  absl::Status Detach(int signal_number = 0, absl::Duration patience = absl::Seconds(10));

  // In PTRACE_EVENT_STOP, before the thread is let go of: the kernel finishes interrupted calls by
  // itself, but for those that give EINTR on a mere stop, which are made to be repeated.
  absl::Status RepeatInterruptedCall() const;

  // Forgets the task without detaching: it has exited and was reaped, or is left to the kernel,
  // which lets go of it when this thread exits.
  void Abandon() { tid_ = 0; }

 private:
  explicit Tracee(pid_t tid) : tid_(tid) {}
  void LetGo();
  absl::Status Call(int request, uint64_t address, uint64_t data, const char* name) const;

  pid_t tid_ = 0;
};

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_PTRACE_H_
