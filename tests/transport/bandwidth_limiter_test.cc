#include "src/transport/bandwidth_limiter.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <thread>

#include "src/base/clock.h"

namespace predump::transport {
namespace {

using base::ByteCount;

constexpr int64_t kStartNs = 1'000'000'000'000;

TEST(BandwidthLimiterTest, NoLimitNeverWaits) {
  BandwidthLimiter limiter(ByteCount(0));
  EXPECT_FALSE(limiter.limited());
  EXPECT_EQ(limiter.Reserve(ByteCount(uint64_t{1} << 60), kStartNs), absl::ZeroDuration());
}

TEST(BandwidthLimiterTest, LongRunRateIsTheLimitHoweverItIsCut) {
  for (const uint64_t piece : {uint64_t{1000}, uint64_t{10'000}, uint64_t{1'000'000}}) {
    BandwidthLimiter limiter(ByteCount(1'000'000));
    int64_t now_ns = kStartNs;
    for (uint64_t sent = 0; sent < 10'000'000; sent += piece) {
      now_ns += absl::ToInt64Nanoseconds(limiter.Reserve(ByteCount(piece), now_ns));
    }
    // Ten seconds' worth, less the bucket of a tenth.
    EXPECT_EQ(absl::Nanoseconds(now_ns - kStartNs), absl::Milliseconds(9900)) << piece;
  }
}

TEST(BandwidthLimiterTest, PauseEarnsNoMoreThanOneBucket) {
  BandwidthLimiter limiter(ByteCount(1'000'000));
  EXPECT_EQ(limiter.Reserve(ByteCount(100'000), kStartNs), absl::ZeroDuration());
  const int64_t later_ns = kStartNs + int64_t{3600} * 1'000'000'000;
  EXPECT_EQ(limiter.Reserve(ByteCount(100'000), later_ns), absl::ZeroDuration());
  EXPECT_EQ(limiter.Reserve(ByteCount(100'000), later_ns), absl::Milliseconds(100));
}

TEST(BandwidthLimiterTest, AbsurdAmountsSaturate) {
  BandwidthLimiter limiter(ByteCount(1));
  const absl::Duration first = limiter.Reserve(ByteCount(UINT64_MAX), kStartNs);
  EXPECT_GT(first, absl::Hours(24 * 365));
  EXPECT_GE(limiter.Reserve(ByteCount(UINT64_MAX), kStartNs), first);
  EXPECT_GE(limiter.Reserve(ByteCount(UINT64_MAX), kStartNs), first);
}

TEST(BandwidthLimiterTest, LiftedLimitHoldsNothingBack) {
  BandwidthLimiter limiter(ByteCount(1));
  limiter.Reserve(ByteCount(1'000'000), kStartNs);
  limiter.Lift();
  EXPECT_EQ(limiter.Reserve(ByteCount(1'000'000), kStartNs), absl::ZeroDuration());
}

class AcquireTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends_), 0);
  }
  void TearDown() override {
    for (const int end : ends_) ::close(end);
  }

  int ends_[2] = {-1, -1};
};

TEST_F(AcquireTest, ReallyWaits) {
  BandwidthLimiter limiter(ByteCount(1'000'000));
  const base::Stopwatch watch;
  ASSERT_TRUE(limiter.Acquire(ByteCount(150'000), ends_[0]).ok());
  EXPECT_GE(watch.Elapsed(), absl::Milliseconds(50));
  EXPECT_LT(watch.Elapsed(), absl::Seconds(2));
}

TEST_F(AcquireTest, WaitsNoLongerThanTheSocketIsWhole) {
  BandwidthLimiter limiter(ByteCount(1));
  const base::Stopwatch watch;
  std::thread canceller([this] { ::shutdown(ends_[0], SHUT_RDWR); });
  EXPECT_TRUE(limiter.Acquire(ByteCount(1'000'000), ends_[0]).ok());
  EXPECT_LT(watch.Elapsed(), absl::Minutes(1));
  canceller.join();
}

}  // namespace
}  // namespace predump::transport
