#include "src/restore/builder.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/images/state_validation.h"
#include "src/kernel/freezer.h"
#include "src/kernel/procfs.h"
#include "src/kernel/restart.h"
#include "src/restore/plan_room.h"
#include "src/restore/xstate.h"

namespace predump::restore::internal {
namespace {

constexpr absl::Duration kBuildTimeout = absl::Seconds(60);  // mlock(2) may have to fetch pages

// How long the process has been frozen, if its clock tells; never more than is plausible.
int64_t ElapsedSinceFreeze(const proto::ProcessState& state, int64_t monotonic_offset_ns) {
  if (!state.extra().has_freeze_monotonic_ns()) return 0;
  const int64_t now = base::MonotonicNanoseconds() + monotonic_offset_ns;
  const int64_t elapsed = now - state.extra().freeze_monotonic_ns();
  constexpr int64_t kLongest = 60'000'000'000;
  return elapsed > 0 && elapsed < kLongest ? elapsed : 0;
}

user_regs_struct ToRegisters(const criu::user_x86_regs_entry& r) {
  user_regs_struct registers = {};
  registers.r15 = r.r15();
  registers.r14 = r.r14();
  registers.r13 = r.r13();
  registers.r12 = r.r12();
  registers.rbp = r.bp();
  registers.rbx = r.bx();
  registers.r11 = r.r11();
  registers.r10 = r.r10();
  registers.r9 = r.r9();
  registers.r8 = r.r8();
  registers.rax = r.ax();
  registers.rcx = r.cx();
  registers.rdx = r.dx();
  registers.rsi = r.si();
  registers.rdi = r.di();
  registers.orig_rax = ~0ull;  // no call to restart: the capture has seen to that
  registers.rip = r.ip();
  registers.cs = r.cs();
  registers.eflags = r.flags();
  registers.rsp = r.sp();
  registers.ss = r.ss();
  registers.fs_base = r.fs_base();
  registers.gs_base = r.gs_base();
  registers.ds = r.ds();
  registers.es = r.es();
  registers.fs = r.fs();
  registers.gs = r.gs();
  return registers;
}

absl::Status CheckCarried(const proto::ProcessState& state) {
  for (const auto& thread : state.threads()) {
    const criu::core_entry& core = thread.core();
    if (core.thread_info().gpregs().mode() != criu::NATIVE) {
      return absl::UnimplementedError("32-bit programs cannot be restored");
    }
    if (core.thread_core().seccomp_mode() != criu::disabled) {
      return absl::UnimplementedError("seccomp cannot be restored");
    }
  }
  const criu::task_core_entry& task = state.threads(0).core().tc();
  if (task.task_state() != 1) return absl::UnimplementedError("the process is stopped or dead");
  if (task.timers().posix_size() != 0) {
    return absl::UnimplementedError("POSIX timers cannot be restored");
  }
  return absl::OkStatus();
}

}  // namespace

Builder::Builder(LandingProcess& process, const proto::ProcessState& state)
    : process_(process),
      state_(state),
      files_(state),
      elapsed_ns_(ElapsedSinceFreeze(state, process.monotonic_offset_ns)),
      memory_(process, state, files_),
      tasks_(process, state, files_, elapsed_ns_) {}

void Builder::EndPhase(const char* name) {
  proto::Phase phase;
  phase.set_name(name);
  phase.set_nanoseconds(absl::ToInt64Nanoseconds(phase_.Elapsed()));
  process_.phases.push_back(std::move(phase));
  phase_ = base::Stopwatch();
}

absl::Status Builder::Build() {
  const kernel::CpuFollower follower(process_.handle);
  PREDUMP_RETURN_IF_ERROR(images::ValidateState(state_, images::StateKind::kStored, {}));
  if (static_cast<pid_t>(state_.pid()) != process_.inner_pid) {
    return absl::InvalidArgumentError(absl::StrCat("the state is of process ", state_.pid(),
                                                   ", the landing is ", process_.inner_pid));
  }
  PREDUMP_RETURN_IF_ERROR(CheckCarried(state_));
  PREDUMP_RETURN_IF_ERROR(tasks_.CheckPossible());
  PREDUMP_RETURN_IF_ERROR(memory_.Prepare());
  PREDUMP_RETURN_IF_ERROR(memory_.JoinMappings());
  EndPhase("restore-check");
  PREDUMP_ASSIGN_OR_RETURN(CallPlan leader, PlanLeader());
  PREDUMP_ASSIGN_OR_RETURN(std::vector<CallPlan> threads, PlanThreads());
  EndPhase("restore-plan");
  const auto run = [&]() -> absl::Status {
    PREDUMP_RETURN_IF_ERROR(
        leader.batch().Start(process_.leader(), process_.inner_pid, process_.inner_pid));
    const absl::Status written = tasks_.WriteProcFiles();
    PREDUMP_RETURN_IF_ERROR(leader.batch().Finish(process_.leader(), kBuildTimeout));
    PREDUMP_RETURN_IF_ERROR(written);
    PREDUMP_RETURN_IF_ERROR(leader.Verify());
    EndPhase("restore-process");
    PREDUMP_RETURN_IF_ERROR(RunThreads(threads));
    if (!threads.empty()) EndPhase("restore-threads");
    PREDUMP_RETURN_IF_ERROR(LoadRegisters());
    EndPhase("restore-registers");
    return absl::OkStatus();
  };
  absl::Status built = run();
  for (const FilePlan::BoundPath& bound : bound_paths_) {
    if (leader.batch().Result(bound.bind) == 0) process_.bound_paths.push_back(bound.path);
  }
  return built;
}

absl::StatusOr<CallPlan> Builder::PlanLeader() {
  PlanRoom room = LeaderRoom(state_);
  room.calls += process_.trampoline.shared().staged_count;
  PREDUMP_ASSIGN_OR_RETURN(CallPlan plan, CallPlan::Create(process_.trampoline, room));
  plan.Call(SYS_close_range, {0, int64_t{~0u}, 0}, "close the landing's descriptors");
  memory_.AddMoves(plan);
  memory_.AddProtections(plan);
  memory_.AddAttributes(plan);
  tasks_.AddEarly(plan);
  FilePlan files(process_, state_, files_, elapsed_ns_, plan);
  tasks_.AddDescriptorRoom(plan, files.highest_descriptor());
  PREDUMP_RETURN_IF_ERROR(files.Add());
  bound_paths_ = files.bound_paths();
  tasks_.AddThreads(plan);
  tasks_.AddProcess(plan);
  tasks_.AddThread(plan, state_.threads(0));
  PREDUMP_RETURN_IF_ERROR(plan.status());
  return plan;
}

absl::StatusOr<std::vector<CallPlan>> Builder::PlanThreads() {
  std::vector<CallPlan> plans;
  for (int i = 1; i < state_.threads_size(); ++i) {
    const proto::ThreadState& thread = state_.threads(i);
    PREDUMP_ASSIGN_OR_RETURN(CallPlan plan,
                             CallPlan::Create(process_.trampoline, ThreadRoom(thread)));
    tasks_.AddThread(plan, thread);
    PREDUMP_RETURN_IF_ERROR(plan.status());
    plans.push_back(std::move(plan));
  }
  return plans;
}

absl::Status Builder::RunThreads(std::vector<CallPlan>& plans) {
  if (plans.empty()) return absl::OkStatus();
  // The new threads are ours from birth, each in its first stop; which is which tells the stack
  // pointer.
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<pid_t> tids, kernel::ListThreads(process_.handle));
  std::vector<std::pair<size_t, kernel::Tracee>> found;
  // Held by the process at once: whatever fails, they are killed with it.
  const auto adopt = [&]() -> absl::Status {
    for (const pid_t tid : tids) {
      if (tid == process_.leader().tid()) continue;
      found.emplace_back(0, kernel::Tracee::AdoptAutoAttached(tid));
      auto& [index, thread] = found.back();
      PREDUMP_RETURN_IF_ERROR(thread.WaitForStop(kBuildTimeout));
      PREDUMP_ASSIGN_OR_RETURN(const user_regs_struct registers, thread.GetRegisters());
      index = (registers.rsp - kHome) / 16 - 1;
      if (index == 0 || index > plans.size()) {
        return absl::InternalError(absl::StrCat("unknown thread ", tid));
      }
    }
    if (found.size() != plans.size()) {
      return absl::InternalError(
          absl::StrCat("there are ", found.size(), " threads instead of ", plans.size()));
    }
    return absl::OkStatus();
  };
  absl::Status adopted = adopt();
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  for (auto& [index, thread] : found) {
    const pid_t inner =
        static_cast<pid_t>(adopted.ok() ? state_.threads(static_cast<int>(index)).tid() : 0);
    process_.threads.push_back(Thread{inner, std::move(thread)});
  }
  PREDUMP_RETURN_IF_ERROR(adopted);
  for (size_t i = 0; i < plans.size(); ++i) {
    Thread& thread = process_.threads[i + 1];
    PREDUMP_RETURN_IF_ERROR(
        plans[i].batch().Start(thread.tracee, process_.inner_pid, thread.inner_tid));
  }
  for (size_t i = 0; i < plans.size(); ++i) {
    PREDUMP_RETURN_IF_ERROR(plans[i].batch().Finish(process_.threads[i + 1].tracee, kBuildTimeout));
    PREDUMP_RETURN_IF_ERROR(plans[i].Verify());
  }
  return absl::OkStatus();
}

absl::Status Builder::LoadRegisters() {
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<std::byte> fresh, process_.leader().GetXstate());
  for (int i = 0; i < state_.threads_size(); ++i) {
    const proto::ThreadState& thread = state_.threads(i);
    kernel::Tracee& tracee = process_.threads[static_cast<size_t>(i)].tracee;
    user_regs_struct registers = ToRegisters(thread.core().thread_info().gpregs());
    if (thread.extra().has_interrupted_call()) {
      const proto::InterruptedCall& call = thread.extra().interrupted_call();
      NoteTimeLeft(static_cast<size_t>(i), call, registers);
      registers = kernel::RebuiltRestartRegisters(registers, static_cast<uint64_t>(call.number()),
                                                  call.result());
    }
    PREDUMP_ASSIGN_OR_RETURN(const std::vector<std::byte> xstate, XstateFor(thread, fresh));
    PREDUMP_RETURN_IF_ERROR(tracee.SetRegisters(registers));
    PREDUMP_RETURN_IF_ERROR(tracee.SetXstate(xstate));
    process_.final_registers.push_back(registers);
    process_.final_masks.push_back(i == 0 ? thread.core().tc().blk_sigset()
                                          : thread.core().thread_core().blk_sigset());
  }
  return absl::OkStatus();
}

// The remaining time goes below the red zone of the thread's own stack, where a signal frame would
// go: nobody relies on what is there. Where there is no room the call begins with its whole time.
void Builder::NoteTimeLeft(size_t thread, const proto::InterruptedCall& call,
                           user_regs_struct registers) {
  constexpr uint64_t kRedZone = 128;
  const uint64_t number = static_cast<uint64_t>(call.number());
  if (!call.has_remaining_ns() || registers.rax != number ||
      kernel::RelativeTimespecArgument(number, registers) == nullptr) {
    return;
  }
  const int64_t remaining = std::clamp<int64_t>(call.remaining_ns(), 0, INT64_MAX / 2);
  const uint64_t scratch = (registers.rsp - kRedZone - sizeof(timespec)) & ~uint64_t{15};
  for (const auto& vma : state_.mm().vmas()) {
    if (vma.start() > scratch || registers.rsp > vma.end() || scratch >= vma.end()) continue;
    if ((vma.prot() & PROT_WRITE) == 0 || (vma.flags() & MAP_PRIVATE) == 0) return;
    process_.times_left.push_back(
        {.thread = thread,
         .call = number,
         .deadline_ns = base::MonotonicNanoseconds() + remaining - elapsed_ns_,
         .scratch = base::RemoteAddress(scratch)});
  }
}

}  // namespace predump::restore::internal
