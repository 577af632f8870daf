// Remaining times of timers, carried over the freeze.
#ifndef PREDUMP_RESTORE_TIMER_VALUE_H_
#define PREDUMP_RESTORE_TIMER_VALUE_H_

#include <time.h>

#include <algorithm>
#include <cstdint>

namespace predump::restore::internal {

// Saturates at about 292 years.
inline int64_t ToNanoseconds(uint64_t seconds, uint64_t nanoseconds) {
  constexpr uint64_t kMax = INT64_MAX / 1'000'000'000 - 1;
  return static_cast<int64_t>(std::min(seconds, kMax) * 1'000'000'000 + nanoseconds);
}

inline timespec ToTimespec(int64_t nanoseconds) {
  return {static_cast<time_t>(nanoseconds / 1'000'000'000),
          static_cast<long>(nanoseconds % 1'000'000'000)};
}

// What is left of `remaining_ns` (> 0) after `elapsed_ns`; never 0, which would disarm: a timer
// that has expired meanwhile expires at once.
inline int64_t RemainingAfter(int64_t remaining_ns, int64_t elapsed_ns) {
  return std::max<int64_t>(remaining_ns - elapsed_ns, 1);
}

// The same of a timer that goes on at every `interval_ns` (> 0), and how often it has expired
// meanwhile: none of that is lost, and its phase stays.
struct PeriodicRemaining {
  int64_t remaining_ns = 0;
  uint64_t expirations = 0;
};
inline PeriodicRemaining PeriodicRemainingAfter(int64_t remaining_ns, int64_t interval_ns,
                                                int64_t elapsed_ns) {
  const int64_t since_expiry = elapsed_ns - remaining_ns;
  if (since_expiry < 0) return {-since_expiry, 0};
  return {interval_ns - since_expiry % interval_ns,
          1 + static_cast<uint64_t>(since_expiry / interval_ns)};
}

}  // namespace predump::restore::internal

#endif  // PREDUMP_RESTORE_TIMER_VALUE_H_
