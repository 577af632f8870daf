// Time as nanoseconds of a named kernel clock.
#ifndef PREDUMP_BASE_CLOCK_H_
#define PREDUMP_BASE_CLOCK_H_

#include <time.h>

#include <cstdint>

#include "absl/time/time.h"

namespace predump::base {

// Nanoseconds of `clock` (CLOCK_MONOTONIC, CLOCK_BOOTTIME, ...) as seen by the calling thread.
inline int64_t ClockNanoseconds(clockid_t clock) {
  struct timespec now;
  ::clock_gettime(clock, &now);
  return static_cast<int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

inline int64_t MonotonicNanoseconds() { return ClockNanoseconds(CLOCK_MONOTONIC); }

// Runs from its construction on the monotonic clock.
class Stopwatch {
 public:
  Stopwatch() : start_ns_(MonotonicNanoseconds()) {}
  absl::Duration Elapsed() const { return absl::Nanoseconds(MonotonicNanoseconds() - start_ns_); }

 private:
  int64_t start_ns_;
};

}  // namespace predump::base

#endif  // PREDUMP_BASE_CLOCK_H_
