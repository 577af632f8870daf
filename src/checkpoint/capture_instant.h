// The instant to which the remaining times of a captured state refer: state.extra.freeze_*_ns.
//
// A time left that was read later than this has to grow by the difference, or the target, which
// takes off all that has passed since the instant, would let it run out early.
#ifndef PREDUMP_CHECKPOINT_CAPTURE_INSTANT_H_
#define PREDUMP_CHECKPOINT_CAPTURE_INSTANT_H_

#include <time.h>

#include <cstdint>
#include <optional>

#include "src/kernel/time_offsets.h"

namespace predump::checkpoint {

class CaptureInstant {
 public:
  // `host_monotonic_ns`: CLOCK_MONOTONIC outside any time namespace, not in the future. `ours` and
  // `process` are the time namespaces of this program and of the process.
  CaptureInstant(int64_t host_monotonic_ns, const kernel::TimeOffsets& ours,
                 const kernel::TimeOffsets& process)
      : host_monotonic_ns_(host_monotonic_ns), ours_(ours), process_(process) {}

  // How long after the instant our CLOCK_MONOTONIC read `our_monotonic_ns`.
  int64_t NanosecondsUntil(int64_t our_monotonic_ns) const {
    return our_monotonic_ns - ours_.monotonic_ns - host_monotonic_ns_;
  }
  // What `clock` showed then, outside any time namespace and to the process. nullopt: a clock of
  // CPU time.
  std::optional<int64_t> HostClock(clockid_t clock) const;
  std::optional<int64_t> ProcessClock(clockid_t clock) const;

 private:
  int64_t host_monotonic_ns_;
  kernel::TimeOffsets ours_;
  kernel::TimeOffsets process_;
};

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_CAPTURE_INSTANT_H_
