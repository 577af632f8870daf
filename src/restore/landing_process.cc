#include "src/restore/landing_process.h"

#include <unistd.h>

#include <signal.h>
#include <sys/wait.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/kernel/wait.h"

namespace predump::restore::internal {

LandingProcess::LandingProcess(pid_t inner, pid_t reaper_pid, kernel::Tracee leader_tracee,
                               kernel::ProcessHandle process_handle, Trampoline shared_memory)
    : inner_pid(inner),
      reaper(reaper_pid),
      handle(std::move(process_handle)),
      trampoline(std::move(shared_memory)) {
  threads.push_back(Thread{inner, std::move(leader_tracee)});
}

LandingProcess::~LandingProcess() {
  if (alive_after_us) return;  // the tracees detach: it runs, or stays parked by its queued stop
  for (const std::string& path : bound_paths) ::unlink(path.c_str());
  // The leader's exit is reported only after the other threads' (DESIGN 12.9), also those of a
  // building broken off that we have not met yet: all are attached to us from birth.
  auto tids = kernel::ListThreads(handle);
  (void)handle.SendSignal(SIGKILL);
  const pid_t leader_tid = leader().tid();
  const auto collect = [](pid_t tid) {
    for (;;) {
      auto event = kernel::Wait({.tid = tid, .timeout = absl::Seconds(5)});
      if (!event.ok() || event->IsExit()) return;
    }
  };
  if (tids.ok()) {
    for (const pid_t tid : *tids) {
      if (tid != leader_tid) collect(tid);
    }
  }
  if (leader_tid != 0) collect(leader_tid);
  for (Thread& thread : threads) thread.tracee.Abandon();
  // Without its child the reaper ends; it is ours to collect.
  (void)kernel::Wait({.tid = reaper, .timeout = absl::Seconds(5)});
}

absl::StatusOr<int64_t> LandingProcess::GateCall(base::RemoteAddress gate, uint64_t number,
                                                 const std::array<uint64_t, 6>& arguments) {
  PREDUMP_ASSIGN_OR_RETURN(user_regs_struct registers, leader().GetRegisters());
  registers.rip = gate.value();
  registers.rax = number;
  registers.orig_rax = ~0ull;
  registers.rdi = arguments[0];
  registers.rsi = arguments[1];
  registers.rdx = arguments[2];
  registers.r10 = arguments[3];
  registers.r8 = arguments[4];
  registers.r9 = arguments[5];
  PREDUMP_RETURN_IF_ERROR(leader().SetRegisters(registers));
  for (int stop = 0; stop < 2; ++stop) {  // entry, exit
    PREDUMP_RETURN_IF_ERROR(leader().ContinueToSyscall());
    PREDUMP_ASSIGN_OR_RETURN(const kernel::WaitEvent event,
                             leader().WaitForStop(absl::Seconds(10)));
    if (event.kind != kernel::WaitEvent::Kind::kSyscallStop) {
      return absl::InternalError(
          absl::StrCat("the landing stopped oddly in a call: ", event.ToString()));
    }
  }
  PREDUMP_ASSIGN_OR_RETURN(registers, leader().GetRegisters());
  return static_cast<int64_t>(registers.rax);
}

}  // namespace predump::restore::internal
