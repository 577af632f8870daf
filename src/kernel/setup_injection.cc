#include "src/kernel/setup_injection.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/kernel/freezer.h"
#include "src/kernel/injected_program.h"
#include "src/kernel/procfs_maps.h"
#include "src/kernel/procfs_task.h"
#include "src/kernel/restart.h"
#include "src/kernel/restartable_sequence.h"
#include "src/kernel/setup_program_x86_64.h"
#include "src/kernel/sleep_note.h"
#include "src/kernel/thread_choice.h"
#include "src/kernel/unstopped_threads.h"
#include "src/kernel/vdso_padding.h"

namespace predump::kernel {
namespace {

// Calls of the program do not wait for anybody but for the address space's lock.
constexpr absl::Duration kCallTimeout = absl::Seconds(30);
// Long enough to cost nothing, short enough to hit the pause between two children of a vfork loop.
constexpr absl::Duration kLookAgain = absl::Milliseconds(1);
constexpr absl::Duration kUsualStop = absl::Milliseconds(2);
constexpr absl::Duration kSlowStop = absl::Milliseconds(100);
constexpr size_t kFewestTableEntries = 16;
constexpr uint64_t kSyscallStops = PTRACE_O_TRACESYSGOOD;

// A signal came first (SIGSTOP here): the kernel makes the call again by itself.
bool IsRestart(int64_t result) {
  constexpr int64_t kErestartsys = 512;
  constexpr int64_t kErestartRestartblock = 516;
  return -kErestartRestartblock <= result && result <= -kErestartsys;
}

}  // namespace

// One setup, from choosing a thread to the running helper.
class SetupInjector {
 public:
  SetupInjector(const ProcessHandle& process, const SetupRequest& request)
      : process_(process), request_(request) {}

  absl::StatusOr<SetupResult> Run();

 private:
  absl::Status Prepare(int64_t deadline);
  // DeadlineExceeded, TargetExited: this thread did not stop, or is gone.
  absl::Status StopAndRun(pid_t tid);
  absl::StatusOr<WaitEvent> WaitUntilStopped(Tracee& thread) const;
  absl::StatusOr<SetupResult> FinishSetup(int64_t deadline);
  absl::Status Enter(const Tracee& thread, const user_regs_struct& stopped);
  absl::Status DriveProgram(Tracee& thread);
  absl::Status LeaveProgram(Tracee thread);
  void NoteResult(uint64_t number, int64_t result);
  void NoteBrokenOffCall(const user_regs_struct& stopped, const SleepNote& sleep);
  absl::Status DriveChild();
  void StartHelper();
  absl::StatusOr<int> NoteOtherStop(const Tracee& task, const WaitEvent& event);
  absl::StatusOr<user_regs_struct> NextSyscallStop(Tracee& task);
  absl::Status ZeroPadding() const;

  const ProcessHandle& process_;
  const SetupRequest& request_;
  bool helper_wanted_ = false;
  std::vector<MapsEntry> maps_;
  base::AddressRange padding_;
  base::RemoteAddress free_page_;
  std::optional<ProcessMemory> memory_;  // through the stopped thread
  bool entered_ = false;                 // a thread may be inside the program
  UnstoppedThreads unstopped_;
  user_regs_struct original_ = {};
  uint64_t signal_mask_ = 0;
  std::optional<Tracee> child_;
  std::optional<Tracee> grandchild_;
  SetupResult result_;
};

absl::StatusOr<SetupResult> InjectSetup(const ProcessHandle& process, const SetupRequest& request) {
  return SetupInjector(process, request).Run();
}

absl::StatusOr<SetupResult> SetupInjector::Run() {
  const int64_t deadline =
      base::MonotonicNanoseconds() + absl::ToInt64Nanoseconds(request_.timeout);
  PREDUMP_RETURN_IF_ERROR(Prepare(deadline));
  for (;;) {
    PREDUMP_RETURN_IF_ERROR(unstopped_.LetGoOfStopped());
    PREDUMP_ASSIGN_OR_RETURN(const ThreadChoice choice, ChooseThreads(process_, padding_));
    if (choice.waits_for_all_kinds != 0 && helper_wanted_) {
      helper_wanted_ = false;
      result_.helper_status = absl::FailedPreconditionError(absl::StrCat(
          "thread ", choice.waits_for_all_kinds, " waits for children of all kinds (__WALL)"));
    }
    absl::Status status = absl::DeadlineExceededError(
        absl::StrCat("process ", process_.pid(), " had no thread that could be stopped within ",
                     absl::FormatDuration(request_.timeout)));
    for (const pid_t tid : choice.tids) {
      if (unstopped_.Contains(tid)) continue;
      status = StopAndRun(tid);
      if (status.ok()) return FinishSetup(deadline);
      // Nothing was done to a thread that did not stop or that exited: another one may do.
      const bool another = absl::IsDeadlineExceeded(status) || base::IsTargetExited(status);
      if (entered_ || !another) return status;
    }
    // The end of an uninterruptible wait (a vfork child's exec, for one) is told by nothing but the
    // thread's state; the end of the process is.
    PREDUMP_ASSIGN_OR_RETURN(const bool exited, process_.WaitForExit(kLookAgain));
    if (exited) {
      return base::TargetExited(absl::StrCat("process ", process_.pid(), " has exited"));
    }
    if (base::MonotonicNanoseconds() >= deadline) return status;
  }
}

// With a thread that would stop some time, and maybe with nobody there, nothing is begun.
absl::StatusOr<SetupResult> SetupInjector::FinishSetup(int64_t deadline) {
  if (grandchild_.has_value()) StartHelper();
  const absl::Status left = unstopped_.LetGoOfAll(deadline);
  if (absl::IsDeadlineExceeded(left)) {
    return base::Annotate(DidNotStop(process_, unstopped_.first(), request_.timeout), "setup");
  }
  PREDUMP_RETURN_IF_ERROR(left);
  result_.stopped += unstopped_.stopped();
  return std::move(result_);
}

absl::Status SetupInjector::Prepare(int64_t deadline) {
  PREDUMP_ASSIGN_OR_RETURN(const StatusFields status, ReadStatus(process_));
  if (status.tracer_pid != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("process ", process_.pid(), " is traced by process ", status.tracer_pid));
  }
  if (status.state == 'T') {
    return absl::FailedPreconditionError(
        absl::StrCat("process ", process_.pid(), " is stopped by a signal"));
  }
  PREDUMP_ASSIGN_OR_RETURN(maps_, ReadMaps(process_));
  PREDUMP_ASSIGN_OR_RETURN(const ProcessMemory memory, ProcessMemory::Open(process_, O_RDONLY));
  PREDUMP_ASSIGN_OR_RETURN(padding_, FindVdsoPadding(maps_, memory));
  PREDUMP_RETURN_IF_ERROR(AwaitLeftTasks(process_, padding_, memory, deadline));
  if (padding_.size().value() < SetupProgramSize()) {
    return absl::UnimplementedError(absl::StrCat("the vDSO has room for ", padding_.size().value(),
                                                 " bytes only; ", SetupProgramSize(),
                                                 " are needed"));
  }
  helper_wanted_ = request_.helper;
  if (!helper_wanted_) return absl::OkStatus();
  const absl::StatusOr<base::RemoteAddress> page = FindRemotePage(maps_);
  if (!page.ok()) {
    result_.helper_status = page.status();
  } else if (!status.namespace_pids.empty() && status.namespace_pids.back() == 1) {
    result_.helper_status = absl::FailedPreconditionError(
        "the process is init of its pid namespace: the helper would become its child");
  } else if (request_.is_subreaper.value_or(false)) {
    result_.helper_status = absl::FailedPreconditionError(
        "the process is a child subreaper: the helper would become its child");
  } else if (padding_.size().value() <
             SetupProgramSize() + kFewestTableEntries * sizeof(struct iovec)) {
    result_.helper_status =
        absl::UnimplementedError("the vDSO has no room for the helper's tables");
  } else {
    free_page_ = *page;
  }
  helper_wanted_ = result_.helper_status.ok();
  return absl::OkStatus();
}

absl::Status SetupInjector::StopAndRun(pid_t tid) {
  PREDUMP_ASSIGN_OR_RETURN(memory_, ProcessMemory::OpenThread(tid, O_RDWR));
  CpuFollower follower(process_, tid);
  SchedulerClocks clocks;
  const std::optional<SleepNote> note = SleepNote::Take(process_, tid, clocks);
  // It was chosen a while ago.
  if (WaitsUninterruptibly(process_, tid)) return DidNotStop(process_, tid, request_.timeout);
  PREDUMP_ASSIGN_OR_RETURN(Tracee thread, Tracee::Seize(tid, kSyscallStops | PTRACE_O_TRACECLONE));
  const base::Stopwatch stopwatch;
  PREDUMP_RETURN_IF_ERROR(thread.Interrupt());
  const absl::StatusOr<WaitEvent> stop = WaitUntilStopped(thread);
  if (absl::IsDeadlineExceeded(stop.status())) unstopped_.Add(std::move(thread));
  PREDUMP_RETURN_IF_ERROR(stop);
  PREDUMP_ASSIGN_OR_RETURN(user_regs_struct stopped, thread.GetRegisters());
  // Now: whatever comes of this, the thread goes on with the registers it has.
  PREDUMP_RETURN_IF_ERROR(thread.RepeatInterruptedCall());
  if (stop->IsGroupStop()) {
    return absl::FailedPreconditionError(
        absl::StrCat("process ", process_.pid(), " is stopped by a signal"));
  }
  if (const auto slept = note.has_value() ? note->Slept(process_, tid) : std::nullopt) {
    ShortenRepeatedCall(*memory_, maps_, *slept, stopped);
    NoteBrokenOffCall(stopped, *note);
  }
  PREDUMP_RETURN_IF_ERROR(Enter(thread, stopped));
  // From here on a detached thread finishes the program by itself: returning is always safe.
  PREDUMP_RETURN_IF_ERROR(DriveProgram(thread));
  PREDUMP_RETURN_IF_ERROR(LeaveProgram(std::move(thread)));
  result_.stopped = stopwatch.Elapsed();
  result_.thread = tid;
  return absl::OkStatus();
}

// A thread stops within microseconds, or as soon as a processor is free for it, unless it has just
// begun an uninterruptible wait: then another thread is taken.
absl::StatusOr<WaitEvent> SetupInjector::WaitUntilStopped(Tracee& thread) const {
  const absl::StatusOr<WaitEvent> stop =
      thread.WaitForEventStop(std::min(request_.timeout, kUsualStop));
  if (!absl::IsDeadlineExceeded(stop.status())) return stop;
  if (WaitsUninterruptibly(process_, thread.tid())) {
    return DidNotStop(process_, thread.tid(), request_.timeout);
  }
  return thread.WaitForEventStop(std::min(request_.timeout, kSlowStop));
}

void SetupInjector::NoteBrokenOffCall(const user_regs_struct& stopped, const SleepNote& sleep) {
  constexpr int64_t kErestartRestartblock = 516;
  if (static_cast<int64_t>(stopped.rax) != -kErestartRestartblock) return;
  const SyscallState call = {
      .running = false,
      .number = static_cast<int64_t>(stopped.orig_rax),
      .arguments = {stopped.rdi, stopped.rsi, stopped.rdx, stopped.r10, stopped.r8, stopped.r9},
      .stack_pointer = stopped.rsp,
      .instruction_pointer = stopped.rip};
  result_.broken_off.emplace(SetupResult::BrokenOffCall{call, sleep});
}

absl::Status SetupInjector::Enter(const Tracee& thread, const user_regs_struct& stopped) {
  PREDUMP_RETURN_IF_ERROR(CheckMayRunProgram(thread, padding_));
  // Until it stopped, this thread may have been the one that made them.
  PREDUMP_RETURN_IF_ERROR(AwaitLeftTasks(process_, padding_, *memory_, /*deadline_ns=*/0));
  original_ = stopped;
  PREDUMP_RETURN_IF_ERROR(LeaveRestartableSequence(thread, *memory_, &original_));
  PREDUMP_ASSIGN_OR_RETURN(signal_mask_, thread.GetSignalMask());
  const InjectedProgram program =
      BuildSetupProgram({.resume = RestartRegisters(original_, {}).registers,
                         .signal_mask = signal_mask_,
                         .free_page = free_page_,
                         .userfaultfd = request_.userfaultfd,
                         .helper = helper_wanted_,
                         .ask_subreaper = !request_.is_subreaper.has_value()});
  entered_ = true;
  return EnterProgram(thread, *memory_, padding_.start(), program, original_);
}

absl::StatusOr<int> SetupInjector::NoteOtherStop(const Tracee& task, const WaitEvent& event) {
  switch (event.kind) {
    case WaitEvent::Kind::kPtraceEvent: {
      if (event.code != PTRACE_EVENT_CLONE) break;
      PREDUMP_ASSIGN_OR_RETURN(const uint64_t child, task.GetEventMessage());
      child_ = Tracee::AdoptAutoAttached(static_cast<pid_t>(child));
      return 0;
    }
    case WaitEvent::Kind::kEventStop:
      // A stop signal has stopped the process, or SIGCONT ended that. The kernel keeps account:
      // this thread alone is led through the program, and is stopped where it is let go of, or is
      // not.
      return 0;
    case WaitEvent::Kind::kSignalStop:
      // Every signal that can be blocked is. Held back and sent again at the end, it would come
      // after a SIGCONT that meant to end it.
      if (event.code == SIGSTOP) return SIGSTOP;
      break;
    default:
      break;
  }
  return absl::InternalError(absl::StrCat("inside the setup program: ", event.ToString()));
}

absl::StatusOr<user_regs_struct> SetupInjector::NextSyscallStop(Tracee& task) {
  PREDUMP_RETURN_IF_ERROR(task.RunToSyscallStop(
      kCallTimeout, [&](const WaitEvent& event) { return NoteOtherStop(task, event); }));
  return task.GetRegisters();
}

absl::Status SetupInjector::DriveProgram(Tracee& thread) {
  bool probed_subreaper = false;
  for (;;) {
    PREDUMP_ASSIGN_OR_RETURN(const user_regs_struct entry, NextSyscallStop(thread));
    if (entry.orig_rax == SYS_rt_sigprocmask) break;
    if (entry.orig_rax == SYS_wait4) {
      // It waits until the child is gone, and the child is gone only when its tracer has seen that.
      PREDUMP_RETURN_IF_ERROR(thread.ContinueToSyscall());
      const absl::Status status = DriveChild();
      if (!status.ok()) result_.helper_status = status;
      // Its exit; a wait that SIGSTOP broke off is entered once more.
      PREDUMP_RETURN_IF_ERROR(thread.WaitForSyscallStop(
          kCallTimeout, [&](const WaitEvent& event) { return NoteOtherStop(thread, event); }));
      continue;
    }
    PREDUMP_ASSIGN_OR_RETURN(const user_regs_struct exit, NextSyscallStop(thread));
    if (IsRestart(static_cast<int64_t>(exit.rax))) continue;
    probed_subreaper |= entry.orig_rax == SYS_prctl;
    NoteResult(entry.orig_rax, static_cast<int64_t>(exit.rax));
  }
  if (helper_wanted_ && !child_.has_value() && result_.helper_status.ok()) {
    result_.helper_status =
        probed_subreaper
            ? absl::FailedPreconditionError(
                  "the process is a child subreaper: the helper would become its child")
            : absl::InternalError("the setup program made no helper");
  }
  return absl::OkStatus();
}

void SetupInjector::NoteResult(uint64_t number, int64_t result) {
  const int error_number = result < 0 ? static_cast<int>(-result) : 0;
  if (number == SYS_userfaultfd) {
    if (error_number != 0) {
      result_.userfaultfd_status = base::ErrnoError(error_number, "userfaultfd in the process");
      return;
    }
    absl::StatusOr<base::UniqueFd> fd = process_.GetDescriptor(static_cast<int>(result));
    result_.userfaultfd_status = fd.status();
    if (fd.ok()) result_.userfaultfd = *std::move(fd);
  } else if (number == SYS_mmap && error_number != 0) {
    result_.helper_status = base::ErrnoError(error_number, "map a page for a moment");
  } else if (number == SYS_clone && error_number != 0) {
    result_.helper_status = base::ErrnoError(error_number, "clone in the process");
  }
}

// Lets the child make the helper and exit. Its exit status is the errno of its clone.
absl::Status SetupInjector::DriveChild() {
  if (!child_.has_value()) return absl::InternalError("a clone without its event");
  const pid_t tid = child_->tid();
  if (tid == 0) return absl::OkStatus();  // done before
  for (;;) {
    PREDUMP_ASSIGN_OR_RETURN(const WaitEvent event, Wait({.tid = tid, .timeout = kCallTimeout}));
    if (event.IsExit()) {
      child_->Abandon();
      if (grandchild_.has_value()) return absl::OkStatus();
      if (event.kind == WaitEvent::Kind::kKilled) return absl::UnavailableError(event.ToString());
      return event.code == 0 ? absl::InternalError("the helper was not attached to")
                             : base::ErrnoError(event.code, "clone in the process");
    }
    if (event.kind == WaitEvent::Kind::kPtraceEvent && event.code == PTRACE_EVENT_CLONE) {
      PREDUMP_ASSIGN_OR_RETURN(const uint64_t helper, child_->GetEventMessage());
      grandchild_ = Tracee::AdoptAutoAttached(static_cast<pid_t>(helper));
    }
    PREDUMP_RETURN_IF_ERROR(child_->Continue());
  }
}

// The thread is at the entry of the program's last call. That call still runs, and the interrupt
// stops the thread right behind it, inside the kernel's signal path: with the very registers of the
// first stop the kernel then finishes or repeats the interrupted call by its own rules.
absl::Status SetupInjector::LeaveProgram(Tracee thread) {
  PREDUMP_RETURN_IF_ERROR(thread.Interrupt());
  PREDUMP_RETURN_IF_ERROR(thread.Continue());
  PREDUMP_RETURN_IF_ERROR(thread.WaitForEventStop(kCallTimeout));
  if (result_.broken_off.has_value() &&
      !result_.broken_off->sleep.CountStopsAsOne(process_, thread.tid())) {
    result_.broken_off.reset();
  }
  PREDUMP_RETURN_IF_ERROR(thread.SetSignalMask(signal_mask_));
  PREDUMP_RETURN_IF_ERROR(
      thread.SetRegisters(NativeRestartRegisters(original_).value_or(original_)));
  // No thread is inside any more. The remains of a write that failed are known as ours.
  if (!grandchild_.has_value()) ZeroPadding().IgnoreError();
  return thread.Detach();
}

// The target runs again; the helper is at its first instruction.
void SetupInjector::StartHelper() {
  absl::StatusOr<HelperTask> helper =
      HelperTask::Start(*std::exchange(grandchild_, std::nullopt), padding_,
                        base::ByteCount(SetupProgramSize()), request_.pipe_capacity);
  result_.helper_status = helper.status();
  if (helper.ok()) result_.helper.emplace(*std::move(helper));
}

absl::Status SetupInjector::ZeroPadding() const {
  const std::vector<std::byte> zeros(padding_.size().value());
  return memory_->Write(padding_.start(), zeros);
}

}  // namespace predump::kernel
