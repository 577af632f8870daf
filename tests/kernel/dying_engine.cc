#include "tests/kernel/dying_engine.h"

#include <sched.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include <atomic>

#include "gtest/gtest.h"
#include "src/base/errors.h"
#include "src/kernel/ptrace.h"
#include "tests/kernel/child_process.h"

namespace predump::kernel {
namespace {

constexpr absl::Duration kCallTimeout = absl::Seconds(30);

// The engine takes its signals (SIGCHLD of its tracees) as if nobody watched.
absl::StatusOr<int> PassOn(const WaitEvent& event) {
  return event.kind == WaitEvent::Kind::kSignalStop ? event.code : 0;
}

// Calls that do something to another process, and the wait for what it does next: a death before
// any other call leaves it as a death before the next of these.
bool Acts(uint64_t number) {
  switch (number) {
    case SYS_ptrace:
    case SYS_wait4:
    case SYS_pwrite64:
    case SYS_process_vm_writev:
    case SYS_kill:
    case SYS_tgkill:
    case SYS_pidfd_send_signal:
    case SYS_pidfd_getfd:
      return true;
    default:
      return false;
  }
}

// Up to the call that is not to be made, or to the engine's exit.
absl::StatusOr<bool> RunToCall(Tracee& engine, int call) {
  uint64_t last = SYS_exit_group;
  for (int calls = 0;;) {
    PREDUMP_RETURN_IF_ERROR(engine.RunToSyscallStop(kCallTimeout, PassOn));  // entry
    PREDUMP_ASSIGN_OR_RETURN(const user_regs_struct entry, engine.GetRegisters());
    const uint64_t number = entry.orig_rax;
    if (number == SYS_exit_group) return false;
    if (Acts(number)) {
      const bool still_waits = number == SYS_wait4 && last == SYS_wait4;
      if (!still_waits && calls++ == call) return true;
      last = number;
    }
    PREDUMP_RETURN_IF_ERROR(engine.RunToSyscallStop(kCallTimeout, PassOn));  // exit
  }
}

}  // namespace

bool DiesBeforeCall(const std::function<void()>& engine, int call) {
  SharedValue<std::atomic<bool>> watched;
  ChildProcess child([&] {
    while (!*watched) ::sched_yield();
    engine();
  });
  auto tracee = Tracee::Seize(child.pid(), PTRACE_O_TRACESYSGOOD);
  EXPECT_TRUE(tracee.ok()) << tracee.status();
  if (!tracee.ok()) return false;
  absl::Status status = tracee->Interrupt();
  if (status.ok()) status = tracee->WaitForEventStop(kCallTimeout).status();
  *watched = true;
  const auto reached = status.ok() ? RunToCall(*tracee, call) : status;
  EXPECT_TRUE(reached.ok()) << reached.status();
  child.Kill();  // from the entry of a call, which then is not made
  tracee->Abandon();
  return reached.ok() && *reached;
}

}  // namespace predump::kernel
