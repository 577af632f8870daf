#include "src/checkpoint/sleep_notes.h"

#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <span>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/base/units.h"
#include "src/kernel/process_memory.h"

namespace predump::checkpoint {
namespace {

constexpr int64_t kErestartRestartblock = 516;
constexpr int64_t kNanosecondsPerSecond = 1'000'000'000;
constexpr uint32_t kFutexHasTimeout = 0x40;  // kernel/futex/futex.h

std::optional<int64_t> TimespecAt(const kernel::ProcessHandle& process, uint64_t address) {
  struct timespec value;
  if (address == 0 ||
      !kernel::ReadProcessMemoryExactly(process, base::RemoteAddress(address),
                                        std::as_writable_bytes(std::span(&value, 1)))
           .ok() ||
      value.tv_sec < 0 || value.tv_sec > INT64_MAX / kNanosecondsPerSecond / 4) {
    return std::nullopt;
  }
  return value.tv_sec * kNanosecondsPerSecond + value.tv_nsec;
}

// The note of the call as it was made first, where it goes on as restart_syscall(2).
const CallNote* FirstNote(const user_regs_struct& r, const StoppedCall& notes) {
  const bool known =
      notes.early != nullptr && notes.early->sleep.has_value() && notes.late != nullptr &&
      notes.late->sleep.has_value() && notes.early->call.number != SYS_restart_syscall &&
      IsSameCall(notes.early->call, r) && notes.early->sleep->GoesOnIn(*notes.late->sleep) &&
      notes.late->sleep->LastedUntilStop(notes.switches);
  return known ? notes.early : nullptr;
}

// restart_syscall(2) keeps the arguments of the call it repeats, but not its number.
std::optional<uint64_t> FirstCall(const user_regs_struct& r, const StoppedCall& notes) {
  if (r.orig_rax != SYS_restart_syscall) return r.orig_rax;
  if (const CallNote* first = FirstNote(r, notes); first != nullptr) {
    return static_cast<uint64_t>(first->call.number);
  }
  if (notes.late == nullptr) return std::nullopt;
  const std::string& channel = notes.late->wait_channel;
  if (absl::StrContains(channel, "poll")) return SYS_poll;
  if (absl::StrContains(channel, "futex")) return SYS_futex;
  // A sleep is entered by a jump instead of a call, so that the entry itself seems to sleep.
  for (const char* name : {"nanosleep", "nsleep", "do_syscall_64", "restart_syscall"}) {
    if (!absl::StrContains(channel, name)) continue;
    // nanosleep's first argument is a pointer, clock_nanosleep's a small number.
    return r.rdi < base::PageSize() ? SYS_clock_nanosleep : SYS_nanosleep;
  }
  return std::nullopt;
}

// Since when the thread is inside its call.
std::optional<int64_t> AsleepSince(const user_regs_struct& r, const StoppedCall& notes) {
  const CallNote* note = r.orig_rax == SYS_restart_syscall ? FirstNote(r, notes) : notes.late;
  if (note == nullptr || !note->sleep.has_value()) return std::nullopt;
  if (note == notes.late &&
      (!IsSameCall(note->call, r) || !note->sleep->LastedUntilStop(notes.switches))) {
    return std::nullopt;
  }
  return note->sleep->since_ns() - notes.clock_offset_ns;
}

// When a sleep of `timeout` ends.
int64_t Deadline(int64_t timeout, std::optional<int64_t> since, const StoppedCall& notes) {
  return since.value_or(notes.frozen_ns) + timeout;
}

void SetFunction(kernel::RestartBlock& block, const char* name) {
  static_assert(sizeof block.function >= 32);
  strncpy(block.function, name, sizeof block.function - 1);
}

void FillSleep(const kernel::ProcessHandle& process, const user_regs_struct& r, bool of_clock,
               const StoppedCall& notes, kernel::RestartBlock& block) {
  const auto clock = of_clock ? static_cast<clockid_t>(r.rdi) : CLOCK_MONOTONIC;
  const bool cpu_clock =
      clock < 0 || clock == CLOCK_PROCESS_CPUTIME_ID || clock == CLOCK_THREAD_CPUTIME_ID;
  SetFunction(block, cpu_clock ? "posix_cpu_nsleep_restart" : "hrtimer_nanosleep_restart");
  // The kernel's clock for a relative sleep; nothing tells a CPU clock's deadline.
  block.clock_id = cpu_clock ? clock : CLOCK_MONOTONIC;
  const uint64_t request = of_clock ? r.rdx : r.rdi;
  block.remainder = of_clock ? r.r10 : r.rsi;
  // The stop has made the kernel write down what is left, often over what was asked for.
  if (const auto left = TimespecAt(process, block.remainder); left.has_value()) {
    block.nanosleep_expires = static_cast<uint64_t>(notes.frozen_ns + *left);
  } else if (const auto timeout = TimespecAt(process, request); timeout.has_value()) {
    block.nanosleep_expires =
        static_cast<uint64_t>(Deadline(*timeout, AsleepSince(r, notes), notes));
  }
}

}  // namespace

bool IsSameCall(const kernel::SyscallState& noted, const user_regs_struct& r) {
  const std::array<uint64_t, 6> arguments = {r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9};
  return !noted.running && noted.arguments == arguments && noted.stack_pointer == r.rsp &&
         noted.instruction_pointer == r.rip &&
         (r.orig_rax == SYS_restart_syscall || noted.number == static_cast<int64_t>(r.orig_rax));
}

absl::StatusOr<CallNotes> NoteSleepers(const kernel::ProcessHandle& process) {
  CallNotes notes;
  PREDUMP_ASSIGN_OR_RETURN(const auto tids, kernel::ListThreads(process));
  kernel::SchedulerClocks clocks;
  for (const pid_t tid : tids) {
    const auto call = kernel::ReadThreadSyscall(process, tid);
    // It exited, or it is being stopped by nobody and asleep in nothing.
    if (!call.ok() || call->running || call->number < 0) continue;
    CallNote note{
        .call = *call, .sleep = kernel::SleepNote::Take(process, tid, clocks), .wait_channel = {}};
    if (call->number == SYS_restart_syscall) {
      note.wait_channel = kernel::ReadThreadWaitChannel(process, tid).value_or("");
    }
    notes.emplace(tid, std::move(note));
  }
  return notes;
}

absl::StatusOr<kernel::RestartBlock> RestartBlockFromNotes(const kernel::ProcessHandle& process,
                                                           pid_t tid, const user_regs_struct& r,
                                                           const StoppedCall& notes) {
  kernel::RestartBlock block = {};
  SetFunction(block, "do_no_restart_syscall");
  if (static_cast<int64_t>(r.rax) != -kErestartRestartblock) return block;
  const auto number = FirstCall(r, notes);
  if (!number.has_value()) {
    return absl::FailedPreconditionError(
        absl::StrCat("thread ", tid, " repeats a call, and nothing tells which without BPF"));
  }
  block = {};
  switch (*number) {
    case SYS_nanosleep:
    case SYS_clock_nanosleep:
      FillSleep(process, r, *number == SYS_clock_nanosleep, notes, block);
      return block;
    case SYS_poll: {
      SetFunction(block, "do_restart_poll");
      block.poll_known = 1;
      const int64_t milliseconds = static_cast<int32_t>(r.rdx);
      if (milliseconds < 0) return block;
      const int64_t deadline = Deadline(milliseconds * 1'000'000, AsleepSince(r, notes), notes);
      block.poll_has_timeout = 1;
      block.poll_seconds = static_cast<uint64_t>(deadline / kNanosecondsPerSecond);
      block.poll_nanoseconds = static_cast<uint64_t>(deadline % kNanosecondsPerSecond);
      return block;
    }
    case SYS_futex: {
      SetFunction(block, "futex_wait_restart");
      const auto timeout = TimespecAt(process, r.r10);
      if (!timeout.has_value()) return block;
      block.futex_flags = kFutexHasTimeout;
      block.futex_time = static_cast<uint64_t>(Deadline(*timeout, AsleepSince(r, notes), notes));
      return block;
    }
    default:
      return absl::FailedPreconditionError(
          absl::StrCat("thread ", tid, " waits in call ", *number,
                       ", whose deadline nothing tells without BPF"));
  }
}

}  // namespace predump::checkpoint
