#include "src/predump/report.h"

#include <nlohmann/json.hpp>

#include "gtest/gtest.h"

namespace predump {
namespace {

TEST(ReportTest, EveryStopIsInTheObjectInOrder) {
  MigrationReport report;
  EXPECT_TRUE(nlohmann::json::parse(report.ToJson()).at("stops").empty());
  report.stops = {{"setup", absl::Microseconds(512)},
                  {"freeze called off: a child", absl::Milliseconds(3.25)}};
  const nlohmann::json stops = nlohmann::json::parse(report.ToJson()).at("stops");
  ASSERT_EQ(stops.size(), 2u);
  EXPECT_EQ(stops[0].at("what"), "setup");
  EXPECT_EQ(stops[0].at("milliseconds"), 0.512);
  EXPECT_EQ(stops[1].at("what"), "freeze called off: a child");
  EXPECT_EQ(stops[1].at("milliseconds"), 3.25);
}

TEST(ReportTest, WithoutAHandoverThereIsNoDowntime) {
  EXPECT_FALSE(nlohmann::json::parse(MigrationReport().ToJson()).contains("downtime-ms"));
}

}  // namespace
}  // namespace predump
