#include "src/checkpoint/sleep_notes.h"

#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <span>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/base/units.h"
#include "src/kernel/process_memory.h"

namespace predump::checkpoint {
namespace {

constexpr int64_t kErestartRestartblock = 516;
constexpr int64_t kNanosecondsPerSecond = 1'000'000'000;
constexpr uint32_t kFutexHasTimeout = 0x40;  // kernel/futex/futex.h

// se.exec_start of /proc/PID/task/TID/sched, "milliseconds.nanoseconds": when the thread last began
// to run or was last accounted for, in its processor's clock.
std::optional<int64_t> ExecStart(absl::string_view text) {
  const size_t at = text.find("se.exec_start");
  if (at == absl::string_view::npos) return std::nullopt;
  text.remove_prefix(at);
  text = text.substr(0, text.find('\n'));
  text.remove_prefix(std::min(text.find(':') + 1, text.size()));
  text = absl::StripAsciiWhitespace(text);
  const size_t point = text.find('.');
  int64_t milliseconds = 0;
  int64_t nanoseconds = 0;
  if (point == absl::string_view::npos || text.size() - point != 7 ||
      !absl::SimpleAtoi(text.substr(0, point), &milliseconds) ||
      !absl::SimpleAtoi(text.substr(point + 1), &nanoseconds)) {
    return std::nullopt;
  }
  return milliseconds * 1'000'000 + nanoseconds;
}

// The clocks of the processors, as far as one thread can read them: by running there.
class ProcessorClocks {
 public:
  ProcessorClocks() {
    known_ = ::pthread_getaffinity_np(::pthread_self(), sizeof before_, &before_) == 0;
  }
  ProcessorClocks(const ProcessorClocks&) = delete;
  ProcessorClocks& operator=(const ProcessorClocks&) = delete;
  ~ProcessorClocks() {
    if (moved_) ::pthread_setaffinity_np(::pthread_self(), sizeof before_, &before_);
  }

  // What to add to a time of `cpu`'s clock to have CLOCK_MONOTONIC.
  std::optional<int64_t> OffsetOf(const kernel::ProcessHandle& self, int cpu) {
    const auto found = offsets_.find(cpu);
    if (found != offsets_.end()) return found->second;
    return offsets_[cpu] = Measure(self, cpu);
  }

 private:
  std::optional<int64_t> Measure(const kernel::ProcessHandle& self, int cpu) {
    if (!known_ || cpu < 0 || cpu >= CPU_SETSIZE) return std::nullopt;
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET(static_cast<size_t>(cpu), &only);
    if (::pthread_setaffinity_np(::pthread_self(), sizeof only, &only) != 0) return std::nullopt;
    moved_ = true;
    // Makes the scheduler account for this thread up to now.
    struct timespec unused;
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &unused);
    const int64_t now = base::MonotonicNanoseconds();
    const auto text = kernel::ReadThreadFile(self, ::gettid(), "sched");
    if (!text.ok()) return std::nullopt;
    const auto start = ExecStart(*text);
    if (!start.has_value()) return std::nullopt;
    return now - *start;
  }

  cpu_set_t before_;
  bool known_ = false;
  bool moved_ = false;
  absl::flat_hash_map<int, std::optional<int64_t>> offsets_;
};

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

// restart_syscall(2) keeps the arguments of the call it repeats, but not its number.
std::optional<uint64_t> FirstCall(const user_regs_struct& r, const CallNotes& notes) {
  if (r.orig_rax != SYS_restart_syscall) return r.orig_rax;
  if (notes.early != nullptr && notes.early->call.number != SYS_restart_syscall &&
      IsSameCall(notes.early->call, r)) {
    return static_cast<uint64_t>(notes.early->call.number);
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
std::optional<int64_t> AsleepSince(const user_regs_struct& r, const CallNotes& notes) {
  if (r.orig_rax == SYS_restart_syscall) {
    const bool known = notes.early != nullptr && notes.early->call.number != SYS_restart_syscall &&
                       IsSameCall(notes.early->call, r);
    return known ? notes.early->since_ns : std::nullopt;
  }
  const bool known = notes.late != nullptr && IsSameCall(notes.late->call, r);
  return known ? notes.late->since_ns : std::nullopt;
}

// When a sleep of `timeout` ends. A deadline gone by was that of an earlier call: had it been this
// one's, the thread would not be asleep.
int64_t Deadline(int64_t timeout, std::optional<int64_t> since, const CallNotes& notes) {
  if (since.has_value() && *since + timeout >= notes.frozen_ns) return *since + timeout;
  return notes.frozen_ns + timeout;
}

void SetFunction(kernel::RestartBlock& block, const char* name) {
  static_assert(sizeof block.function >= 32);
  strncpy(block.function, name, sizeof block.function - 1);
}

void FillSleep(const kernel::ProcessHandle& process, const user_regs_struct& r, bool of_clock,
               const CallNotes& notes, kernel::RestartBlock& block) {
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

absl::StatusOr<SleepNotes> NoteSleepers(const kernel::ProcessHandle& process) {
  SleepNotes notes;
  PREDUMP_ASSIGN_OR_RETURN(const auto tids, kernel::ListThreads(process));
  PREDUMP_ASSIGN_OR_RETURN(const auto self, kernel::ProcessHandle::Open(::getpid()));
  ProcessorClocks clocks;
  for (const pid_t tid : tids) {
    const auto call = kernel::ReadThreadSyscall(process, tid);
    // It exited, or it is being stopped by nobody and asleep in nothing.
    if (!call.ok() || call->running || call->number < 0) continue;
    SleepNote note{.call = *call, .since_ns = std::nullopt, .wait_channel = {}};
    const auto sched = kernel::ReadThreadFile(process, tid, "sched");
    const auto stat = kernel::ReadThreadStat(process, tid);
    if (sched.ok() && stat.ok()) {
      const auto start = ExecStart(*sched);
      const auto offset = start.has_value() ? clocks.OffsetOf(self, stat->last_cpu) : std::nullopt;
      if (offset.has_value()) note.since_ns = *start + *offset;
    }
    if (call->number == SYS_restart_syscall) {
      note.wait_channel = kernel::ReadThreadWaitChannel(process, tid).value_or("");
    }
    notes.emplace(tid, std::move(note));
  }
  return notes;
}

absl::StatusOr<kernel::RestartBlock> RestartBlockFromNotes(const kernel::ProcessHandle& process,
                                                           pid_t tid, const user_regs_struct& r,
                                                           const CallNotes& notes) {
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
