#include "src/transport/bandwidth_limiter.h"

#include <poll.h>

#include <algorithm>
#include <limits>

#include "src/base/clock.h"
#include "src/transport/deadline.h"
#include "src/transport/socket.h"

namespace predump::transport {
namespace {

constexpr int64_t kSecondNs = 1'000'000'000;
constexpr int64_t kBucketNs = kSecondNs / 10;

// How long `bytes` take; saturates instead of wrapping.
int64_t CostNanoseconds(uint64_t bytes, uint64_t bytes_per_second) {
  const auto cost = static_cast<absl::uint128>(bytes) * kSecondNs / bytes_per_second;
  constexpr int64_t kMaxNs = std::numeric_limits<int64_t>::max() / 4;
  return cost > static_cast<absl::uint128>(kMaxNs) ? kMaxNs : static_cast<int64_t>(cost);
}

}  // namespace

BandwidthLimiter::BandwidthLimiter(base::ByteCount bytes_per_second)
    : bytes_per_second_(bytes_per_second.value()) {}

absl::Duration BandwidthLimiter::Reserve(base::ByteCount bytes, int64_t now_ns) {
  if (!limited()) return absl::ZeroDuration();
  // The bucket seen from the time axis: full is "paid for a bucket's length ago", empty is "now".
  free_at_ns_ = std::max(free_at_ns_, now_ns - kBucketNs);
  const int64_t cost_ns = CostNanoseconds(bytes.value(), bytes_per_second_);
  constexpr int64_t kLatestNs = std::numeric_limits<int64_t>::max() / 2;
  free_at_ns_ = std::min(free_at_ns_ + cost_ns, kLatestNs);
  return absl::Nanoseconds(std::max<int64_t>(0, free_at_ns_ - now_ns));
}

absl::Status BandwidthLimiter::Acquire(base::ByteCount bytes, int socket) {
  const absl::Duration wait = Reserve(bytes, base::MonotonicNanoseconds());
  if (wait == absl::ZeroDuration()) return absl::OkStatus();
  // POLLRDHUP comes when the peer is gone and when a cancellation shuts the socket down.
  return WaitFor(socket, POLLRDHUP, Deadline::After(wait)).status();
}

}  // namespace predump::transport
