#include "src/cli/values.h"

#include "gtest/gtest.h"

namespace predump::cli {
namespace {

TEST(ValuesTest, DurationsTakeUnitsAndBareNumbers) {
  EXPECT_EQ(*ParseDuration("300", absl::Milliseconds(1)), absl::Milliseconds(300));
  EXPECT_EQ(*ParseDuration("0.5", absl::Seconds(1)), absl::Milliseconds(500));
  EXPECT_EQ(*ParseDuration("2s", absl::Milliseconds(1)), absl::Seconds(2));
  EXPECT_EQ(*ParseDuration("1m30s", absl::Milliseconds(1)), absl::Seconds(90));
  EXPECT_EQ(*ParseDuration("0", absl::Seconds(1)), absl::ZeroDuration());
}

TEST(ValuesTest, OtherDurationsAreRefused) {
  for (const char* text : {"", "x", "-1", "-2s", "nan", "inf", "5 parsecs", "1e400"}) {
    EXPECT_FALSE(ParseDuration(text, absl::Seconds(1)).ok()) << text;
  }
}

TEST(ValuesTest, RatesTakeBinarySuffixes) {
  EXPECT_EQ(ParseByteRate("500000")->value(), 500000u);
  EXPECT_EQ(ParseByteRate("100K")->value(), 102400u);
  EXPECT_EQ(ParseByteRate("1.5G")->value(), 1610612736u);
}

TEST(ValuesTest, OtherRatesAreRefused) {
  for (const char* text : {"", "0", "-1", "K", "fast", "1e30", "nan", "inf", "10X", "10MM"}) {
    EXPECT_FALSE(ParseByteRate(text).ok()) << text;
  }
}

TEST(ValuesTest, ATimeoutNamesItsOutcomeOrCancels) {
  EXPECT_EQ(ParseTimeout("60")->after, absl::Seconds(60));
  EXPECT_EQ(ParseTimeout("60")->outcome, Outcome::kCancel);
  EXPECT_EQ(ParseTimeout("0.5:force")->outcome, Outcome::kForce);
  EXPECT_EQ(ParseTimeout("5:cancel")->outcome, Outcome::kCancel);
  for (const char* text : {"", ":force", "60:explode", "60:force:cancel", "x:force"}) {
    EXPECT_FALSE(ParseTimeout(text).ok()) << text;
  }
}

TEST(ValuesTest, AProcessIdIsADecimalNumber) {
  for (const char* text : {"1", "4711", "4194304"}) EXPECT_TRUE(IsProcessId(text)) << text;
  for (const char* text : {"", "0", "-5", "010", "0x10", " 7", "7 ", "+7", "1e3", "99999999999"}) {
    EXPECT_FALSE(IsProcessId(text)) << text;
  }
}

TEST(ValuesTest, WhatCommandsATerminalIsSpelledOut) {
  EXPECT_EQ(Printable("/srv/größe 'a\\b'"), "/srv/größe 'a\\b'");
  EXPECT_EQ(Printable("a\x1b[31m\n\x7f"), "a\\x1b[31m\\x0a\\x7f");
  EXPECT_EQ(Printable("\xc2\x9b"
                      "31m"),
            "\xc2\\x9b"
            "31m");
}

TEST(ValuesTest, BytesAreWrittenWithTheirUnit) {
  EXPECT_EQ(FormatBytes(12), "12 B");
  EXPECT_EQ(FormatBytes(832 * 1024), "832.0 KiB");
  EXPECT_EQ(FormatBytes(1.5 * 1024 * 1024 * 1024), "1.5 GiB");
}

}  // namespace
}  // namespace predump::cli
