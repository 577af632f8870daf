// A token bucket on the monotonic clock: --bandwidth.
//
// Thread rule: one thread at a time.
#ifndef PREDUMP_TRANSPORT_BANDWIDTH_LIMITER_H_
#define PREDUMP_TRANSPORT_BANDWIDTH_LIMITER_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "src/base/units.h"

namespace predump::transport {

class BandwidthLimiter {
 public:
  // Zero bytes per second: no limit. The bucket holds a tenth of a second's worth, so that a pause
  // in sending is not made up for by a burst.
  explicit BandwidthLimiter(base::ByteCount bytes_per_second);

  // Takes `bytes` from the bucket, which may go into debt, and returns how long to wait before
  // sending them: zero while the bucket is not in debt. `now_ns` is CLOCK_MONOTONIC and never goes
  // back. Waits add up: n bytes take at least n/rate seconds, less one bucket, however they are
  // cut.
  absl::Duration Reserve(base::ByteCount bytes, int64_t now_ns);

  // Reserves and waits, but no longer than the connected `socket` is whole: what is sent into it
  // next says why it is not. Errors: from ppoll(2).
  absl::Status Acquire(base::ByteCount bytes, int socket);

  // Takes the limit away: while the process is frozen nothing is held back.
  void Lift() { bytes_per_second_ = 0; }

  // The most to send at once: what the bucket holds. Larger pieces would go out in bursts, far
  // apart. Only where limited().
  base::ByteCount bucket() const { return base::ByteCount(bytes_per_second_ / 10); }

  bool limited() const { return bytes_per_second_ != 0; }

 private:
  uint64_t bytes_per_second_;
  int64_t free_at_ns_ = 0;  // when the bytes taken so far will have been paid for
};

}  // namespace predump::transport

#endif  // PREDUMP_TRANSPORT_BANDWIDTH_LIMITER_H_
