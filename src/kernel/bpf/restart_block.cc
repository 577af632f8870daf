#include <cstdint>
#include <cstring>
#include <ctime>
#include <optional>

#include "absl/strings/string_view.h"
#include "src/kernel/bpf/task_capture.h"

namespace predump::kernel {
namespace {

// kernel/futex/futex.h, since 6.7
constexpr uint32_t kFutexClockRealtime = 0x20;
constexpr uint32_t kFutexHasTimeout = 0x40;

constexpr uint64_t kNanosecondsPerSecond = 1'000'000'000;

}  // namespace

RestartKind RestartKindOf(const RestartBlock& block) {
  const absl::string_view name(block.function, strnlen(block.function, sizeof(block.function)));
  if (name == "do_no_restart_syscall") return RestartKind::kNone;
  if (name == "hrtimer_nanosleep_restart") return RestartKind::kNanosleep;
  if (name == "posix_cpu_nsleep_restart") return RestartKind::kCpuNanosleep;
  if (name == "alarm_timer_nsleep_restart") return RestartKind::kAlarmNanosleep;
  if (name == "do_restart_poll") return RestartKind::kPoll;
  if (name == "futex_wait_restart") return RestartKind::kFutex;
  return RestartKind::kUnknown;
}

std::optional<RestartDeadline> RestartDeadlineOf(const RestartBlock& block) {
  switch (RestartKindOf(block)) {
    case RestartKind::kNanosleep:
    case RestartKind::kCpuNanosleep:
      return RestartDeadline{block.clock_id, block.nanosleep_expires};
    case RestartKind::kAlarmNanosleep:
      // The field holds enum alarmtimer_type: 0 realtime, 1 boot time.
      return RestartDeadline{block.clock_id == 0 ? CLOCK_REALTIME : CLOCK_BOOTTIME,
                             block.nanosleep_expires};
    case RestartKind::kPoll:
      if (block.poll_known == 0 || block.poll_has_timeout == 0) return std::nullopt;
      return RestartDeadline{CLOCK_MONOTONIC,
                             block.poll_seconds * kNanosecondsPerSecond + block.poll_nanoseconds};
    case RestartKind::kFutex:
      if ((block.futex_flags & kFutexHasTimeout) == 0) return std::nullopt;
      return RestartDeadline{
          (block.futex_flags & kFutexClockRealtime) != 0 ? CLOCK_REALTIME : CLOCK_MONOTONIC,
          block.futex_time};
    case RestartKind::kNone:
    case RestartKind::kUnknown:
      return std::nullopt;
  }
  return std::nullopt;
}

std::optional<uint64_t> OffCpuNanoseconds(const ThreadRecord& thread) {
  if (thread.last_ran == 0 || thread.last_ran_now == 0) return std::nullopt;
  // The two CPUs' corrections are taken at slightly different instants.
  if (thread.last_ran >= thread.last_ran_now) return 0;
  return thread.last_ran_now - thread.last_ran;
}

}  // namespace predump::kernel
