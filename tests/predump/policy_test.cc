#include "src/predump/policy.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace predump {
namespace {

using ::testing::HasSubstr;

RoundRecord Round(uint64_t pages, double seconds, double since_last_scan = 0) {
  RoundRecord round;
  round.pages = base::PageCount(pages);
  round.bytes = base::ByteCount(pages * 4096 + 64);
  round.send = absl::Seconds(seconds);
  round.since_last_scan = absl::Seconds(since_last_scan);
  round.scan = absl::Milliseconds(2);
  return round;
}

// The history of a process that writes `rate` pages a second over a link of `bandwidth` bytes a
// second, as the loop itself would see it, for `rounds` rounds.
std::vector<RoundRecord> Simulate(double rate, double bandwidth, uint64_t total_pages, int rounds) {
  std::vector<RoundRecord> history;
  double pages = static_cast<double>(total_pages);
  double interval = 0;
  for (int i = 0; i < rounds; ++i) {
    const double seconds = pages * 4096 / bandwidth + 0.002;
    history.push_back(Round(static_cast<uint64_t>(pages), seconds, interval));
    interval = seconds;
    pages = std::min(rate * interval, static_cast<double>(total_pages));
  }
  return history;
}

TEST(PolicyTest, NeverFreezesAfterTheFirstRoundAlone) {
  const auto history = Simulate(0, 1e9, 1000, 1);
  const Decision decision = Decide(history, {}, absl::Seconds(1), true, "");
  EXPECT_EQ(decision.next, NextStep::kAnotherRound);
  EXPECT_FALSE(decision.expected_downtime.has_value());
}

TEST(PolicyTest, FreezesAnIdleProcessAfterTheSecondRound) {
  const auto history = Simulate(0, 1e9, 262144, 2);
  const Decision decision = Decide(history, {}, absl::Seconds(1), true, "");
  EXPECT_EQ(decision.next, NextStep::kFreeze);
  ASSERT_TRUE(decision.expected_downtime.has_value());
  EXPECT_LE(*decision.expected_downtime, absl::Milliseconds(3 + 2 + 1));
}

TEST(PolicyTest, GoesOnWithinTheBoundWhileAnotherRoundCutsAFifth) {
  // Round 1 already fits into 300 ms, but a further round would still shrink it tenfold.
  std::vector<RoundRecord> history = {Round(262144, 1.0), Round(20000, 0.08, 1.0)};
  PolicyLimits limits;
  limits.fixed_cost = absl::Milliseconds(1);
  const Decision decision = Decide(history, limits, absl::Seconds(1), true, "");
  ASSERT_TRUE(decision.expected_downtime.has_value());
  ASSERT_LE(*decision.expected_downtime, limits.max_downtime);
  EXPECT_EQ(decision.next, NextStep::kAnotherRound);
}

TEST(PolicyTest, ConvergesForEveryWriterSlowerThanTheLink) {
  for (const double rate : {0.0, 1e3, 5e4, 2e5}) {
    bool frozen = false;
    for (int rounds = 2; rounds <= 30 && !frozen; ++rounds) {
      const auto history = Simulate(rate, 2e9, 262144, rounds);
      frozen = Decide(history, {}, absl::Seconds(rounds), true, "").next == NextStep::kFreeze;
    }
    EXPECT_TRUE(frozen) << "at " << rate << " pages/s";
  }
}

TEST(PolicyTest, AWriterFasterThanTheLinkIsCancelledAtTheRoundLimit) {
  PolicyLimits limits;
  limits.max_rounds = 10;
  // 100 MB/s of writing over a 50 MB/s link, 8 GiB to choose from.
  const auto history = Simulate(25000, 50e6, 2097152, 10);
  const Decision decision = Decide(history, limits, absl::Seconds(100), true, "");
  EXPECT_EQ(decision.next, NextStep::kCancel);
  EXPECT_THAT(decision.reason, HasSubstr("10 rounds"));
  EXPECT_THAT(decision.reason, HasSubstr("over the bound"));
}

TEST(PolicyTest, ForceFreezesAtTheTimeoutWhateverTheExpectation) {
  PolicyLimits limits;
  limits.timeout = absl::Seconds(5);
  limits.on_limit = Outcome::kForce;
  const auto history = Simulate(25000, 50e6, 2097152, 4);
  EXPECT_EQ(Decide(history, limits, absl::Seconds(4), true, "").next, NextStep::kAnotherRound);
  EXPECT_EQ(Decide(history, limits, absl::Seconds(5), true, "").next, NextStep::kFreeze);
}

TEST(PolicyTest, ExactRoundsAreExact) {
  PolicyLimits limits;
  limits.exact_rounds = 3;
  const auto history = Simulate(0, 1e9, 1000, 3);
  EXPECT_EQ(Decide({history.data(), 2}, limits, absl::Seconds(1), true, "").next,
            NextStep::kAnotherRound);
  EXPECT_EQ(Decide(history, limits, absl::Seconds(1), true, "").next, NextStep::kFreeze);
}

TEST(PolicyTest, WaitsForAPassingHindranceAndCancelsWhenItStays) {
  PolicyLimits limits;
  limits.max_rounds = 5;
  const std::string reason = "child process 42 is still there";
  const auto history = Simulate(0, 1e9, 1000, 5);
  EXPECT_EQ(Decide({history.data(), 4}, limits, absl::Seconds(1), false, reason).next,
            NextStep::kAnotherRound);
  const Decision decision = Decide(history, limits, absl::Seconds(1), false, reason);
  EXPECT_EQ(decision.next, NextStep::kCancel);
  EXPECT_EQ(decision.reason, reason);
}

TEST(PolicyTest, ExactRoundsAreFollowedByMoreWhileAFreezeIsHindered) {
  PolicyLimits limits;
  limits.exact_rounds = 2;
  limits.max_rounds = 3;
  const auto history = Simulate(0, 1e9, 1000, 5);
  EXPECT_EQ(Decide({history.data(), 2}, limits, absl::Seconds(1), false, "child").next,
            NextStep::kAnotherRound);
  EXPECT_EQ(Decide({history.data(), 3}, limits, absl::Seconds(1), true, "").next,
            NextStep::kFreeze);
  EXPECT_EQ(Decide(history, limits, absl::Seconds(1), false, "child").next, NextStep::kCancel);
}

TEST(PolicyTest, WhatTheNextScanOwesIsSentBeforeTheFreeze) {
  // Nothing is written, but the last scan was not sure of a gigabyte.
  std::vector<RoundRecord> history = {Round(262144, 1.0), Round(10, 0.001, 1.0)};
  history[1].owed = base::PageCount(262144);
  Decision decision = Decide(history, {}, absl::Seconds(1), true, "");
  EXPECT_EQ(decision.next, NextStep::kAnotherRound);
  ASSERT_TRUE(decision.expected_downtime.has_value());
  EXPECT_GT(*decision.expected_downtime, absl::Milliseconds(900));

  // The round that pays it does not make the process a fast writer.
  history.push_back(Round(262144, 1.0, 0.01));
  decision = Decide(history, {}, absl::Seconds(2), true, "");
  EXPECT_LT(decision.dirty_pages_per_second, 100);
  EXPECT_EQ(decision.next, NextStep::kFreeze);
}

TEST(PolicyTest, OwedEveryTimeItIsNoReasonForAnotherRound) {
  // Mappings that cannot be followed, 20 ms of sending: rounds do not make them fewer.
  std::vector<RoundRecord> history = {Round(262144, 1.0), Round(5243, 0.02, 1.0)};
  for (RoundRecord& round : history) round.owed = base::PageCount(5243);
  const Decision decision = Decide(history, {}, absl::Seconds(1), true, "");
  EXPECT_EQ(decision.next, NextStep::kFreeze);
  EXPECT_NEAR(absl::ToDoubleMilliseconds(*decision.expected_downtime), 3 + 2 + 20, 2);
}

TEST(PolicyTest, ScanAndRoundTripsArePartOfTheDowntime) {
  std::vector<RoundRecord> history = Simulate(0, 1e9, 262144, 2);
  history[1].scan = absl::Milliseconds(40);
  history[1].round_trip = absl::Milliseconds(60);
  const Decision decision = Decide(history, {}, absl::Seconds(1), true, "");
  ASSERT_TRUE(decision.expected_downtime.has_value());
  EXPECT_GE(*decision.expected_downtime, absl::Milliseconds(40 + 2 * 60));
  PolicyLimits limits;
  limits.max_downtime = absl::Milliseconds(100);
  limits.max_rounds = 2;
  EXPECT_EQ(Decide(history, limits, absl::Seconds(1), true, "").next, NextStep::kCancel);
}

TEST(PolicyTest, TinyRoundsDoNotSpoilTheBandwidth) {
  // A round of one page takes a round trip, not 4096 bytes' worth of link.
  std::vector<RoundRecord> history = {Round(262144, 1.0), Round(1, 0.005, 1.0)};
  const Decision decision = Decide(history, {}, absl::Seconds(1), true, "");
  EXPECT_GT(decision.bytes_per_second, 5e8);
}

}  // namespace
}  // namespace predump
