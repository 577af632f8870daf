#include "src/checkpoint/capture_instant.h"

#include "src/base/clock.h"

namespace predump::checkpoint {

std::optional<int64_t> CaptureInstant::HostClock(clockid_t clock) const {
  // Read before the time that has passed since is: rather too little than too much.
  const auto then = [this](clockid_t read) {
    const int64_t now = base::ClockNanoseconds(read);
    return now - NanosecondsUntil(base::MonotonicNanoseconds());
  };
  switch (clock) {
    case CLOCK_MONOTONIC:
      return host_monotonic_ns_;
    case CLOCK_BOOTTIME:
    case CLOCK_BOOTTIME_ALARM:
      return then(CLOCK_BOOTTIME) - ours_.boottime_ns;
    case CLOCK_REALTIME:
    case CLOCK_REALTIME_ALARM:
      return then(CLOCK_REALTIME);
    case CLOCK_TAI:
      return then(CLOCK_TAI);
    default:
      return std::nullopt;
  }
}

std::optional<int64_t> CaptureInstant::ProcessClock(clockid_t clock) const {
  const std::optional<int64_t> host = HostClock(clock);
  if (!host.has_value()) return std::nullopt;
  if (clock == CLOCK_MONOTONIC) return *host + process_.monotonic_ns;
  if (clock == CLOCK_BOOTTIME || clock == CLOCK_BOOTTIME_ALARM) return *host + process_.boottime_ns;
  return host;
}

}  // namespace predump::checkpoint
