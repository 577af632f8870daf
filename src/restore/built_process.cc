#include "src/restore/built_process.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/kernel/freezer.h"
#include "src/kernel/process_memory.h"
#include "src/kernel/restart.h"
#include "src/restore/call_plan.h"
#include "src/restore/landing_process.h"
#include "src/restore/timer_value.h"

namespace predump::restore {
namespace {

using internal::CallPlan;
using internal::LandingProcess;
using internal::Thread;

constexpr absl::Duration kStepTimeout = absl::Seconds(10);
constexpr size_t kSiginfoBytes = 128;

// As late as can be: the memory was compared with the source's before. A thread whose time cannot
// be written begins its call with the whole of it.
void WriteTimesLeft(LandingProcess& process) {
  if (process.times_left.empty()) return;
  const auto memory = kernel::ProcessMemory::Open(process.handle, O_RDWR);
  if (!memory.ok()) return;
  for (const internal::TimeLeft& left : process.times_left) {
    const int64_t nanoseconds = left.deadline_ns - base::MonotonicNanoseconds();
    const timespec time = internal::ToTimespec(std::max<int64_t>(nanoseconds, 0));
    if (!memory->Write(left.scratch, std::as_bytes(std::span(&time, 1))).ok()) continue;
    user_regs_struct registers = process.final_registers[left.thread];
    *kernel::RelativeTimespecArgument(left.call, registers) = left.scratch.value();
    if (process.threads[left.thread].tracee.SetRegisters(registers).ok()) {
      process.final_registers[left.thread] = registers;
    }
  }
}

}  // namespace

BuiltProcess::BuiltProcess(std::unique_ptr<LandingProcess> process)
    : process_(std::move(process)) {}
BuiltProcess::BuiltProcess(BuiltProcess&&) noexcept = default;
BuiltProcess& BuiltProcess::operator=(BuiltProcess&&) noexcept = default;
BuiltProcess::~BuiltProcess() = default;

pid_t BuiltProcess::pid() const { return process_->handle.pid(); }
pid_t BuiltProcess::reaper_pid() const { return process_->reaper; }
const std::vector<proto::Phase>& BuiltProcess::phases() const { return process_->phases; }

absl::Status BuiltProcess::QueueLateSignals(std::span<const proto::LateSignal> signals) {
  for (const proto::LateSignal& signal : signals) {
    if (signal.siginfo().size() != kSiginfoBytes) {
      return absl::InvalidArgumentError("a late signal whose siginfo has not 128 bytes");
    }
    int number = 0;
    ::memcpy(&number, signal.siginfo().data(), sizeof(number));
    const pid_t tid = static_cast<pid_t>(signal.has_tid() ? signal.tid() : process_->inner_pid);
    const auto thread =
        std::find_if(process_->threads.begin(), process_->threads.end(),
                     [&](const Thread& candidate) { return candidate.inner_tid == tid; });
    if (thread == process_->threads.end() || number < 1 || number > 64) {
      return absl::InvalidArgumentError(
          absl::StrCat("late signal ", number, " for thread ", tid, ", which there is not"));
    }
    // From itself to itself: only so may the siginfo say anything (rt_sigqueueinfo(2)).
    PREDUMP_ASSIGN_OR_RETURN(CallPlan plan, CallPlan::Create(process_->trampoline, {1, 4096}));
    const uint64_t info = plan.Bytes(signal.siginfo());
    if (signal.has_tid()) {
      plan.Call(SYS_rt_tgsigqueueinfo, {process_->inner_pid, tid, number, info},
                absl::StrCat("late signal ", number));
    } else {
      plan.Call(SYS_rt_sigqueueinfo, {process_->inner_pid, number, info},
                absl::StrCat("late signal ", number));
    }
    PREDUMP_RETURN_IF_ERROR(plan.status());
    PREDUMP_RETURN_IF_ERROR(
        plan.batch().Run(thread->tracee, process_->inner_pid, tid, kStepTimeout));
    const size_t index = static_cast<size_t>(thread - process_->threads.begin());
    PREDUMP_RETURN_IF_ERROR(thread->tracee.SetRegisters(process_->final_registers[index]));
  }
  return absl::OkStatus();
}

absl::Status BuiltProcess::QueueStop() {
  WriteTimesLeft(*process_);
  // Last remote call: through the process's own vDSO, the one place of code that stays.
  PREDUMP_ASSIGN_OR_RETURN(
      const int64_t unmapped,
      process_->GateCall(process_->vdso_gate, SYS_munmap,
                         {process_->trampoline.remote().value(), kTrampolineBytes}));
  if (unmapped != 0) {
    return base::ErrnoError(static_cast<int>(-unmapped), "unmap the trampoline");
  }
  PREDUMP_RETURN_IF_ERROR(process_->leader().SetRegisters(process_->final_registers[0]));
  for (size_t i = 0; i < process_->threads.size(); ++i) {
    PREDUMP_RETURN_IF_ERROR(process_->threads[i].tracee.SetSignalMask(process_->final_masks[i]));
  }
  return process_->handle.SendSignal(SIGSTOP);
}

absl::Status BuiltProcess::ClearExitKill() {
  for (const Thread& thread : process_->threads) {
    PREDUMP_RETURN_IF_ERROR(thread.tracee.SetOptions(0));
  }
  process_->alive_after_us = true;
  return absl::OkStatus();
}

absl::Status BuiltProcess::Release() && {
  std::unique_ptr<LandingProcess> process = std::move(process_);
  kernel::Tracee& leader = process->leader();
  int deliver = 0;
  for (;;) {
    PREDUMP_RETURN_IF_ERROR(leader.Continue(deliver));
    auto event = leader.WaitForStop(kStepTimeout);
    if (base::IsTargetExited(event.status())) return absl::OkStatus();  // of a signal it had
    PREDUMP_RETURN_IF_ERROR(event);
    if (event->kind == kernel::WaitEvent::Kind::kSignalStop && event->code == SIGSTOP) break;
    // A signal that was pending comes before the stop: it is the process's, handlers and all.
    deliver = event->kind == kernel::WaitEvent::Kind::kSignalStop ? event->code : 0;
  }
  // Detached with the stop dropped, the leader last: until then no signal frees the others.
  absl::Status result;
  for (size_t i = process->threads.size(); i-- > 0;) {
    const absl::Status detached = std::move(process->threads[i].tracee).Detach();
    if (!detached.ok() && !base::IsTargetExited(detached)) result.Update(detached);
  }
  return result;
}

absl::Status BuiltProcess::FinishParked(const kernel::ProcessHandle& process,
                                        absl::Duration timeout) {
  return kernel::FrozenProcess::UnparkAndResume(process, timeout);
}

}  // namespace predump::restore
