// A point on the monotonic clock by which something must be done.
//
// The wall clock may jump; a wait must not grow or shrink with it. Thread rule: values.
#ifndef PREDUMP_TRANSPORT_DEADLINE_H_
#define PREDUMP_TRANSPORT_DEADLINE_H_

#include <cstdint>
#include <limits>

#include "absl/time/time.h"
#include "src/base/clock.h"

namespace predump::transport {

class Deadline {
 public:
  static Deadline After(absl::Duration duration) {
    const int64_t wait_ns = absl::ToInt64Nanoseconds(duration);
    const int64_t now_ns = base::MonotonicNanoseconds();
    return wait_ns > kNever - now_ns ? Never() : Deadline(now_ns + wait_ns);
  }
  static Deadline Never() { return Deadline(kNever); }

  bool never() const { return at_ns_ == kNever; }
  bool passed() const { return !never() && base::MonotonicNanoseconds() >= at_ns_; }

  // Zero when passed, absl::InfiniteDuration() when there is none.
  absl::Duration Remaining() const {
    if (never()) return absl::InfiniteDuration();
    const int64_t left_ns = at_ns_ - base::MonotonicNanoseconds();
    return absl::Nanoseconds(left_ns > 0 ? left_ns : 0);
  }

  // The earlier of the two.
  static Deadline Earlier(Deadline a, Deadline b) { return a.at_ns_ < b.at_ns_ ? a : b; }

 private:
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
  explicit Deadline(int64_t at_ns) : at_ns_(at_ns) {}

  int64_t at_ns_;
};

}  // namespace predump::transport

#endif  // PREDUMP_TRANSPORT_DEADLINE_H_
