#include "src/predump/survey.h"

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace predump {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

Surveyed Blocked(const std::string& what) {
  Surveyed seen;
  proto::Blocker& blocker = seen.survey.blockers.emplace_back();
  blocker.set_what(what);
  blocker.set_reason("a file of /proc shows this host's processes");
  return seen;
}

std::vector<std::string> Names(const Surveyed& seen) {
  std::vector<std::string> names;
  for (const proto::Blocker& blocker : seen.survey.blockers) names.push_back(blocker.what());
  return names;
}

TEST(SurveyTest, WhatPassesIsNoBlocker) {
  int looks = 0;
  const absl::StatusOr<Surveyed> seen = LookAgainWhileBlocked(
      [&]() -> absl::StatusOr<Surveyed> { return ++looks < 3 ? Blocked("fd 40") : Surveyed(); },
      absl::ZeroDuration());
  ASSERT_TRUE(seen.ok()) << seen.status();
  EXPECT_THAT(Names(*seen), IsEmpty());
  EXPECT_EQ(looks, 3);
}

TEST(SurveyTest, WhatStaysIsReportedAfterAFewLooks) {
  int looks = 0;
  const absl::StatusOr<Surveyed> seen = LookAgainWhileBlocked(
      [&]() -> absl::StatusOr<Surveyed> {
        ++looks;
        return Blocked("fd 7");
      },
      absl::ZeroDuration());
  ASSERT_TRUE(seen.ok()) << seen.status();
  EXPECT_THAT(Names(*seen), ElementsAre("fd 7"));
  EXPECT_GT(looks, 1);
  EXPECT_LT(looks, 20);
}

TEST(SurveyTest, ChildrenAreNotWaitedForHere) {
  int looks = 0;
  const absl::StatusOr<Surveyed> seen = LookAgainWhileBlocked(
      [&]() -> absl::StatusOr<Surveyed> {
        ++looks;
        Surveyed with_child;
        with_child.survey.children.emplace_back();
        return with_child;
      },
      absl::ZeroDuration());
  ASSERT_TRUE(seen.ok()) << seen.status();
  EXPECT_EQ(looks, 1);
}

TEST(SurveyTest, AProcessThatEndsIsAnError) {
  const absl::StatusOr<Surveyed> seen = LookAgainWhileBlocked(
      []() -> absl::StatusOr<Surveyed> { return absl::NotFoundError("process 7 has exited"); },
      absl::ZeroDuration());
  EXPECT_TRUE(absl::IsNotFound(seen.status())) << seen.status();
}

}  // namespace
}  // namespace predump
