#include "src/cli/progress.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace predump::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::internal::CaptureStderr;
using ::testing::internal::GetCapturedStderr;

RoundReport Round() {
  RoundReport round;
  round.number = 3;
  round.pages = base::PageCount(1000);
  round.bytes = base::ByteCount(4096000);
  round.duration = absl::Milliseconds(12.5);
  round.dirty_pages_per_second = 80000;
  round.bytes_per_second = 2.0 * 1024 * 1024 * 1024;
  round.remaining = base::PageCount(512);
  round.expected_downtime = absl::Milliseconds(7.25);
  return round;
}

TEST(ProgressTest, ARoundIsOneLineWithUnits) {
  const std::string line = FormatRound(Round());
  EXPECT_THAT(line, HasSubstr("round 3: 1000 pages (3.9 MiB) in 12.5 ms"));
  EXPECT_THAT(line, HasSubstr("2.0 GiB/s"));
  EXPECT_THAT(line, HasSubstr("expected downtime 7.2 ms"));
  EXPECT_EQ(line.find('\n'), std::string::npos);
}

TEST(ProgressTest, AnUnknownExpectationSaysSo) {
  RoundReport round = Round();
  round.expected_downtime.reset();
  EXPECT_THAT(FormatRound(round), HasSubstr("not known yet"));
}

TEST(ProgressTest, TheLiveLineIsRedrawnInPlaceAndTakenAway) {
  CaptureStderr();
  {
    ProgressDisplay display(/*live=*/true);
    display.OnProgress(Round());
  }
  const std::string output = GetCapturedStderr();
  EXPECT_THAT(output, HasSubstr("\r\033[Kround 3: 80000 dirty pages/s"));
  EXPECT_THAT(output, HasSubstr("2.0 MiB remaining"));
  EXPECT_EQ(output.substr(output.size() - 4), "\r\033[K");
  EXPECT_EQ(output.find('\n'), std::string::npos);
}

TEST(ProgressTest, WithoutATerminalThereIsNoLiveLine) {
  CaptureStderr();
  {
    ProgressDisplay display(/*live=*/false);
    display.OnProgress(Round());
  }
  EXPECT_EQ(GetCapturedStderr(), "");
}

}  // namespace
}  // namespace predump::cli
