#include "src/kernel/sleep_note.h"

#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <span>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "src/base/clock.h"
#include "src/base/units.h"
#include "src/kernel/procfs_task.h"
#include "src/kernel/restart.h"

namespace predump::kernel {
namespace {

struct SchedFields {
  int64_t exec_start_ns = 0;  // when it last ran, or was last accounted for, in its CPU's clock
  uint64_t voluntary_switches = 0;
  friend bool operator==(const SchedFields&, const SchedFields&) = default;
};

// The value of "name   :   value".
std::optional<absl::string_view> FieldOf(absl::string_view text, absl::string_view name) {
  const size_t at = text.find(absl::StrCat("\n", name, " "));
  if (at == absl::string_view::npos) return std::nullopt;
  text.remove_prefix(at + 1);
  text = text.substr(0, text.find('\n'));
  const size_t colon = text.find(':');
  if (colon == absl::string_view::npos) return std::nullopt;
  return absl::StripAsciiWhitespace(text.substr(colon + 1));
}

std::optional<SchedFields> ParseSched(absl::string_view text) {
  const auto start = FieldOf(text, "se.exec_start");
  const auto switches = FieldOf(text, "nr_voluntary_switches");
  if (!start.has_value() || !switches.has_value()) return std::nullopt;
  // "milliseconds.nanoseconds", six digits.
  const size_t point = start->find('.');
  int64_t milliseconds = 0;
  int64_t nanoseconds = 0;
  SchedFields fields;
  if (point == absl::string_view::npos || start->size() - point != 7 ||
      !absl::SimpleAtoi(start->substr(0, point), &milliseconds) ||
      !absl::SimpleAtoi(start->substr(point + 1), &nanoseconds) ||
      !absl::SimpleAtoi(*switches, &fields.voluntary_switches)) {
    return std::nullopt;
  }
  fields.exec_start_ns = milliseconds * 1'000'000 + nanoseconds;
  return fields;
}

std::optional<SchedFields> ReadSched(const ProcessHandle& process, pid_t tid) {
  const auto text = ReadThreadFile(process, tid, "sched");
  return text.ok() ? ParseSched(*text) : std::nullopt;
}

}  // namespace

SchedulerClocks::SchedulerClocks() {
  known_ = ::pthread_getaffinity_np(::pthread_self(), sizeof before_, &before_) == 0;
}

SchedulerClocks::~SchedulerClocks() {
  if (moved_) ::pthread_setaffinity_np(::pthread_self(), sizeof before_, &before_);
}

std::optional<int64_t> SchedulerClocks::OffsetOf(int cpu) {
  const auto found = offsets_.find(cpu);
  if (found != offsets_.end()) return found->second;
  return offsets_[cpu] = Measure(cpu);
}

std::optional<int64_t> SchedulerClocks::Measure(int cpu) {
  if (!known_ || cpu < 0 || cpu >= CPU_SETSIZE) return std::nullopt;
  const auto self = ProcessHandle::Open(::getpid());
  if (!self.ok()) return std::nullopt;
  cpu_set_t only;
  CPU_ZERO(&only);
  CPU_SET(static_cast<size_t>(cpu), &only);
  if (::pthread_setaffinity_np(::pthread_self(), sizeof only, &only) != 0) return std::nullopt;
  moved_ = true;
  // Makes the scheduler account for this thread up to now.
  struct timespec unused;
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &unused);
  const auto own = ReadSched(*self, ::gettid());
  if (!own.has_value()) return std::nullopt;
  // Read last: a delay in between makes a sleep look shorter than it was, never longer, which would
  // end it early.
  return base::MonotonicNanoseconds() - own->exec_start_ns;
}

std::optional<SleepNote> SleepNote::Take(const ProcessHandle& process, pid_t tid,
                                         SchedulerClocks& clocks) {
  const auto sched = ReadSched(process, tid);
  const auto stat = ReadThreadStat(process, tid);
  const auto again = ReadSched(process, tid);
  // One that ran in between may have done so on another CPU, whose clock is another.
  if (!stat.ok() || !sched.has_value() || again != sched) return std::nullopt;
  const auto offset = clocks.OffsetOf(stat->last_cpu);
  if (!offset.has_value()) return std::nullopt;
  SleepNote note;
  note.since_ns_ = sched->exec_start_ns + *offset;
  note.switches_ = sched->voluntary_switches;
  return note;
}

std::optional<absl::Duration> SleepNote::Slept(const ProcessHandle& process, pid_t tid) const {
  const auto sched = ReadSched(process, tid);
  if (!sched.has_value() || !LastedUntilStop(sched->voluntary_switches)) return std::nullopt;
  return absl::Nanoseconds(std::max<int64_t>(0, base::MonotonicNanoseconds() - since_ns_));
}

bool SleepNote::CountStopsAsOne(const ProcessHandle& process, pid_t tid) {
  const auto sched = ReadSched(process, tid);
  if (sched.has_value()) switches_ = sched->voluntary_switches - 1;
  return sched.has_value();
}

void ShortenRepeatedCall(const ProcessMemory& memory, const std::vector<MapsEntry>& maps,
                         absl::Duration slept, user_regs_struct& r) {
  if (static_cast<int64_t>(r.rax) != -EINTR || !ReturnsEintrAfterStop(r.orig_rax)) return;
  if (r.orig_rax == SYS_epoll_wait || r.orig_rax == SYS_epoll_pwait) {
    const int32_t timeout_ms = static_cast<int32_t>(r.r10);
    if (timeout_ms <= 0) return;
    const absl::Duration left = absl::Milliseconds(timeout_ms) - slept;
    r.r10 = static_cast<uint64_t>(
        std::max<int64_t>(0, absl::ToInt64Milliseconds(absl::Ceil(left, absl::Milliseconds(1)))));
    return;
  }
  unsigned long long* argument = RelativeTimespecArgument(r.orig_rax, r);
  if (argument == nullptr) return;
  const uint64_t scratch = BelowRedZone(r.rsp, sizeof(struct timespec));
  const bool has_room = std::any_of(maps.begin(), maps.end(), [&](const MapsEntry& entry) {
    return (entry.prot & PROT_WRITE) != 0 && !entry.shared &&
           entry.range.start().value() <= scratch && r.rsp <= entry.range.end().value();
  });
  struct timespec time;
  if (!has_room ||
      !memory
           .ReadExactly(base::RemoteAddress(*argument), std::as_writable_bytes(std::span(&time, 1)))
           .ok()) {
    return;
  }
  const absl::Duration left =
      std::max(absl::DurationFromTimespec(time) - slept, absl::ZeroDuration());
  time = absl::ToTimespec(left);
  if (memory.Write(base::RemoteAddress(scratch), std::as_bytes(std::span(&time, 1))).ok()) {
    *argument = scratch;
  }
}

}  // namespace predump::kernel
