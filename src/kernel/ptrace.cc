#include "src/kernel/ptrace.h"

#include <elf.h>
#include <errno.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/kernel/restart.h"

namespace predump::kernel {
namespace {

// struct ptrace_rseq_configuration; glibc 2.36 has it, older ones do not.
struct RseqConfigurationMirror {
  uint64_t address;
  uint32_t size;
  uint32_t signature;
  uint32_t flags;
  uint32_t padding;
};
static_assert(sizeof(RseqConfigurationMirror) == 24);

// The x86-64 XSAVE area with AMX tiles is about 11 KiB; the kernel tells the true size.
constexpr size_t kXstateRoom = 16384;

// The request's type is an enumeration in glibc, and data is variadic.
long RawPtrace(int request, pid_t tid, uint64_t address, uint64_t data) {
  return ::ptrace(static_cast<__ptrace_request>(request), tid, reinterpret_cast<void*>(address),
                  reinterpret_cast<void*>(data));
}

uint64_t AsData(const void* pointer) { return reinterpret_cast<uint64_t>(pointer); }

absl::Status PtraceError(int error_number, const char* name, pid_t tid) {
  // ESRCH also means "not stopped"; the callers of this class keep that rule, so it is an exit (a
  // SIGKILL ends any stop).
  if (error_number == ESRCH) {
    return base::TargetExited(absl::StrCat(name, ": task ", tid, " has exited"));
  }
  return base::ErrnoError(error_number, name, " of task ", tid);
}

}  // namespace

Tracee::Tracee(Tracee&& other) noexcept : tid_(std::exchange(other.tid_, 0)) {}

Tracee& Tracee::operator=(Tracee&& other) noexcept {
  if (this != &other) {
    LetGo();
    tid_ = std::exchange(other.tid_, 0);
  }
  return *this;
}

Tracee::~Tracee() { LetGo(); }

void Tracee::LetGo() {
  // One that cannot be stopped at all is let go of by the kernel when this thread exits.
  if (tid_ != 0) Detach(0, absl::Seconds(1)).IgnoreError();
}

absl::StatusOr<Tracee> Tracee::Seize(pid_t tid, uint64_t options) {
  if (RawPtrace(PTRACE_SEIZE, tid, 0, options) != 0) {
    return PtraceError(errno, "PTRACE_SEIZE", tid);
  }
  return Tracee(tid);
}

absl::Status Tracee::Call(int request, uint64_t address, uint64_t data, const char* name) const {
  if (RawPtrace(request, tid_, address, data) >= 0) return absl::OkStatus();
  return PtraceError(errno, name, tid_);
}

absl::Status Tracee::Interrupt() const { return Call(PTRACE_INTERRUPT, 0, 0, "PTRACE_INTERRUPT"); }

absl::StatusOr<WaitEvent> Tracee::WaitForStop(std::optional<absl::Duration> timeout) {
  // To waitpid(2), 0 would be any child.
  if (tid_ == 0) return base::TargetExited("the attachment is over");
  absl::StatusOr<WaitEvent> event = Wait({.tid = tid_, .timeout = timeout});
  if (absl::IsNotFound(event.status())) {
    // Another thread of the target called execve(2), or somebody reaped it.
    return base::TargetExited(absl::StrCat("task ", std::exchange(tid_, 0), " is gone"));
  }
  if (event.ok() && event->IsExit()) {
    tid_ = 0;
    return base::TargetExited(event->ToString());
  }
  return event;
}

// Any stop uses an interrupt up, so it is repeated before a thread that stopped for another reason
// is resumed: the kernel then stops it again on its way back to user mode.
absl::StatusOr<WaitEvent> Tracee::WaitForEventStop(absl::Duration timeout) {
  const int64_t deadline = base::MonotonicNanoseconds() + absl::ToInt64Nanoseconds(timeout);
  for (;;) {
    const int64_t left = std::max<int64_t>(deadline - base::MonotonicNanoseconds(), 0);
    PREDUMP_ASSIGN_OR_RETURN(const WaitEvent event, WaitForStop(absl::Nanoseconds(left)));
    if (event.kind == WaitEvent::Kind::kEventStop) return event;
    PREDUMP_RETURN_IF_ERROR(Interrupt());
    PREDUMP_RETURN_IF_ERROR(Continue(event.kind == WaitEvent::Kind::kSignalStop ? event.code : 0));
  }
}

absl::StatusOr<user_regs_struct> Tracee::GetRegisters() const {
  user_regs_struct registers;
  PREDUMP_RETURN_IF_ERROR(Call(PTRACE_GETREGS, 0, AsData(&registers), "PTRACE_GETREGS"));
  return registers;
}

absl::Status Tracee::SetRegisters(const user_regs_struct& registers) const {
  return Call(PTRACE_SETREGS, 0, AsData(&registers), "PTRACE_SETREGS");
}

absl::StatusOr<std::vector<std::byte>> Tracee::GetXstate() const {
  std::vector<std::byte> xstate(kXstateRoom);
  struct iovec io = {xstate.data(), xstate.size()};
  PREDUMP_RETURN_IF_ERROR(
      Call(PTRACE_GETREGSET, NT_X86_XSTATE, AsData(&io), "PTRACE_GETREGSET NT_X86_XSTATE"));
  if (io.iov_len == xstate.size()) {
    return absl::InternalError("this processor's extended state is larger than expected");
  }
  xstate.resize(io.iov_len);
  return xstate;
}

absl::Status Tracee::SetXstate(std::span<const std::byte> xstate) const {
  struct iovec io = {const_cast<std::byte*>(xstate.data()), xstate.size()};
  return Call(PTRACE_SETREGSET, NT_X86_XSTATE, AsData(&io), "PTRACE_SETREGSET NT_X86_XSTATE");
}

absl::StatusOr<uint64_t> Tracee::GetSignalMask() const {
  uint64_t mask = 0;
  PREDUMP_RETURN_IF_ERROR(Call(PTRACE_GETSIGMASK, sizeof mask, AsData(&mask), "PTRACE_GETSIGMASK"));
  return mask;
}

absl::Status Tracee::SetSignalMask(uint64_t mask) const {
  return Call(PTRACE_SETSIGMASK, sizeof mask, AsData(&mask), "PTRACE_SETSIGMASK");
}

absl::StatusOr<std::vector<siginfo_t>> Tracee::PeekPendingSignals(PendingQueue queue) const {
  std::vector<siginfo_t> signals;
  for (;;) {
    siginfo_t chunk[32];
    struct __ptrace_peeksiginfo_args arguments = {};
    arguments.off = signals.size();
    arguments.flags = queue == PendingQueue::kProcess ? PTRACE_PEEKSIGINFO_SHARED : 0;
    arguments.nr = std::size(chunk);
    const long got = RawPtrace(PTRACE_PEEKSIGINFO, tid_, AsData(&arguments), AsData(chunk));
    if (got < 0) return PtraceError(errno, "PTRACE_PEEKSIGINFO", tid_);
    if (got == 0) return signals;
    signals.insert(signals.end(), chunk, chunk + got);
  }
}

absl::StatusOr<siginfo_t> Tracee::GetSignalInfo() const {
  siginfo_t info;
  PREDUMP_RETURN_IF_ERROR(Call(PTRACE_GETSIGINFO, 0, AsData(&info), "PTRACE_GETSIGINFO"));
  return info;
}

absl::StatusOr<RseqConfiguration> Tracee::GetRseqConfiguration() const {
  constexpr int kGetRseqConfiguration = 0x420f;  // PTRACE_GET_RSEQ_CONFIGURATION
  RseqConfigurationMirror mirror = {};
  PREDUMP_RETURN_IF_ERROR(
      Call(kGetRseqConfiguration, sizeof mirror, AsData(&mirror), "PTRACE_GET_RSEQ_CONFIGURATION"));
  return RseqConfiguration{base::RemoteAddress(mirror.address), mirror.size, mirror.signature,
                           mirror.flags};
}

absl::StatusOr<bool> Tracee::UsesSyscallUserDispatch() const {
  constexpr int kGetConfiguration = 0x4211;  // PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG
  struct {
    uint64_t mode;
    uint64_t selector;
    uint64_t offset;
    uint64_t length;
  } configuration = {};
  const absl::Status status = Call(kGetConfiguration, sizeof configuration, AsData(&configuration),
                                   "PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG");
  if (base::ErrnoOf(status) == EIO || base::ErrnoOf(status) == EINVAL) return false;
  PREDUMP_RETURN_IF_ERROR(status);
  return configuration.mode != 0;
}

absl::StatusOr<uint64_t> Tracee::GetEventMessage() const {
  unsigned long message = 0;
  PREDUMP_RETURN_IF_ERROR(Call(PTRACE_GETEVENTMSG, 0, AsData(&message), "PTRACE_GETEVENTMSG"));
  return message;
}

absl::Status Tracee::SetOptions(uint64_t options) const {
  return Call(PTRACE_SETOPTIONS, 0, options, "PTRACE_SETOPTIONS");
}

absl::Status Tracee::Continue(int signal_number) const {
  return Call(PTRACE_CONT, 0, static_cast<uint64_t>(signal_number), "PTRACE_CONT");
}

absl::Status Tracee::ContinueToSyscall(int signal_number) const {
  return Call(PTRACE_SYSCALL, 0, static_cast<uint64_t>(signal_number), "PTRACE_SYSCALL");
}

absl::Status Tracee::RunToSyscallStop(absl::Duration timeout, OtherStop other) {
  PREDUMP_RETURN_IF_ERROR(ContinueToSyscall());
  return WaitForSyscallStop(timeout, other);
}

absl::Status Tracee::WaitForSyscallStop(absl::Duration timeout, OtherStop other) {
  const int64_t deadline = base::MonotonicNanoseconds() + absl::ToInt64Nanoseconds(timeout);
  for (;;) {
    const int64_t left = std::max<int64_t>(deadline - base::MonotonicNanoseconds(), 0);
    PREDUMP_ASSIGN_OR_RETURN(const WaitEvent event, WaitForStop(absl::Nanoseconds(left)));
    if (event.kind == WaitEvent::Kind::kSyscallStop) return absl::OkStatus();
    PREDUMP_ASSIGN_OR_RETURN(const int signal_number, other(event));
    PREDUMP_RETURN_IF_ERROR(ContinueToSyscall(signal_number));
  }
}

absl::Status Tracee::RepeatInterruptedCall() const {
  PREDUMP_ASSIGN_OR_RETURN(const user_regs_struct registers, GetRegisters());
  const std::optional<user_regs_struct> fixed = NativeRestartRegisters(registers);
  return fixed.has_value() ? SetRegisters(*fixed) : absl::OkStatus();
}

// PTRACE_DETACH says ESRCH of a thread that runs just as of one that is gone. Only waiting for it
// tells which, and has to be done in either case: one that runs would stop sooner or later with
// nobody there, and one that has exited stays a zombie, and its process with it, until its tracer
// has waited for it.
absl::Status Tracee::Detach(int signal_number, absl::Duration patience) {
  const int64_t deadline = base::MonotonicNanoseconds() + absl::ToInt64Nanoseconds(patience);
  while (RawPtrace(PTRACE_DETACH, tid_, 0, static_cast<uint64_t>(signal_number)) != 0) {
    if (errno != ESRCH) return base::ErrnoError(errno, "PTRACE_DETACH of task ", tid_);
    if (const absl::Status interrupted = Interrupt(); !interrupted.ok()) {
      if (base::IsTargetExited(interrupted)) tid_ = 0;  // no tracee of ours any more
      return interrupted;
    }
    const int64_t left = std::max<int64_t>(deadline - base::MonotonicNanoseconds(), 0);
    PREDUMP_ASSIGN_OR_RETURN(const WaitEvent event, WaitForStop(absl::Nanoseconds(left)));
    signal_number = event.kind == WaitEvent::Kind::kSignalStop ? event.code : 0;
    // Fails only where the thread was killed meanwhile, which the next turn finds out.
    if (event.kind == WaitEvent::Kind::kEventStop) RepeatInterruptedCall().IgnoreError();
  }
  tid_ = 0;
  return absl::OkStatus();
}

}  // namespace predump::kernel
