#include "src/pagemap/choose.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace predump::pagemap {
namespace {

using kernel::Capability;
using kernel::CapabilityResult;
using ::testing::HasSubstr;

// All there but those named.
std::vector<CapabilityResult> AllBut(std::vector<Capability> missing) {
  std::vector<CapabilityResult> all;
  for (const auto& [capability, name] : std::vector<std::pair<Capability, std::string>>{
           {Capability::kUffdWpAsync, "uffd-wp-async"},
           {Capability::kPagemapScan, "pagemap-scan"},
           {Capability::kSoftDirty, "soft-dirty"},
           {Capability::kPidfdGetfd, "pidfd-getfd"},
           {Capability::kProcessVmReadv, "process-vm-readv"},
           {Capability::kVmspliceSharesPages, "vmsplice-shares-pages"},
           {Capability::kProcessVmsplice, "process-vmsplice"},
           {Capability::kCloseRangeUnshare, "close-range-unshare"},
       }) {
    const bool there = std::find(missing.begin(), missing.end(), capability) == missing.end();
    all.push_back({.capability = capability,
                   .name = name,
                   .purpose = "",
                   .since = "",
                   .available = there,
                   .reason = there ? "tried" : "ENOSYS from the probe"});
  }
  return all;
}

const std::vector<Capability> kStock = {Capability::kSoftDirty, Capability::kProcessVmsplice};

TEST(ChooseTest, AutoTakesTheBestThatWorks) {
  const auto tracker = ChooseTracker("auto", AllBut(kStock));
  ASSERT_TRUE(tracker.ok());
  EXPECT_EQ(tracker->name, "uffd-wp");
  EXPECT_THAT(tracker->reason, HasSubstr("without stopping"));
  const auto source = ChooseSource("auto", AllBut(kStock));
  ASSERT_TRUE(source.ok());
  EXPECT_EQ(source->name, "helper");
  EXPECT_THAT(source->reason, HasSubstr("no process_vmsplice: the kernel lacks process-vmsplice"));
}

TEST(ChooseTest, AutoSaysWhatItPassedOver) {
  const auto tracker =
      ChooseTracker("auto", AllBut({Capability::kUffdWpAsync, Capability::kSoftDirty}));
  ASSERT_TRUE(tracker.ok());
  EXPECT_EQ(tracker->name, "full");
  EXPECT_THAT(tracker->reason, HasSubstr("uffd-wp-async (ENOSYS from the probe)"));
  EXPECT_THAT(tracker->reason, HasSubstr("soft-dirty (ENOSYS from the probe)"));
  const auto source = ChooseSource(
      "auto", AllBut({Capability::kProcessVmsplice, Capability::kVmspliceSharesPages}));
  ASSERT_TRUE(source.ok());
  EXPECT_EQ(source->name, "readv");
  EXPECT_THAT(source->reason, HasSubstr("vmsplice-shares-pages"));
}

TEST(ChooseTest, ANameThatTheKernelCannotServeIsAnErrorThatSaysWhy) {
  const auto soft = ChooseTracker("soft-dirty", AllBut(kStock));
  EXPECT_EQ(soft.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(soft.status().message(), HasSubstr("lacks soft-dirty (ENOSYS from the probe)"));
  const auto vmsplice = ChooseSource("process_vmsplice", AllBut(kStock));
  EXPECT_EQ(vmsplice.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(vmsplice.status().message(), HasSubstr("lacks process-vmsplice"));
  const auto helper = ChooseSource("helper", AllBut({Capability::kCloseRangeUnshare}));
  EXPECT_THAT(helper.status().message(), HasSubstr("close-range-unshare"));
}

TEST(ChooseTest, APatchedKernelNeedsNoHelper) {
  const auto source = ChooseSource("auto", AllBut({}));
  ASSERT_TRUE(source.ok());
  EXPECT_EQ(source->name, "process_vmsplice");
  EXPECT_THAT(source->reason, HasSubstr("needs no helper"));
}

TEST(ChooseTest, SoftDirtyComesAfterUffdWp) {
  EXPECT_EQ(ChooseTracker("auto", AllBut({}))->name, "uffd-wp");
  const auto tracker = ChooseTracker("auto", AllBut({Capability::kPagemapScan}));
  ASSERT_TRUE(tracker.ok());
  EXPECT_EQ(tracker->name, "soft-dirty");
  EXPECT_THAT(tracker->reason,
              HasSubstr("short freeze; no uffd-wp: the kernel lacks pagemap-scan"));
}

TEST(ChooseTest, WhatAProcessRefusesIsFollowedByTheNextBest) {
  const auto tracker = ChooseTrackerAfter("uffd-wp", "seccomp", AllBut({}));
  ASSERT_TRUE(tracker.ok());
  EXPECT_EQ(tracker->name, "soft-dirty");
  EXPECT_THAT(tracker->reason, HasSubstr("short freeze; no uffd-wp: seccomp"));
  EXPECT_EQ(ChooseTrackerAfter("uffd-wp", "seccomp", AllBut(kStock))->name, "full");
  const auto source = ChooseSourceAfter("helper", "pids.max", AllBut({}));
  ASSERT_TRUE(source.ok());
  EXPECT_EQ(source->name, "readv");
  EXPECT_THAT(source->reason, HasSubstr("no helper: pids.max"));
}

TEST(ChooseTest, AskingByNameIsTheReason) {
  EXPECT_EQ(ChooseTracker("full", AllBut({}))->reason, "asked for");
  EXPECT_EQ(ChooseSource("readv", AllBut({}))->name, "readv");
}

TEST(ChooseTest, UnknownNamesAreListedAgainstTheKnown) {
  const auto tracker = ChooseTracker("dirty", AllBut({}));
  EXPECT_EQ(tracker.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(tracker.status().message(), HasSubstr("auto, uffd-wp, soft-dirty, full"));
}

TEST(ChooseTest, NothingThatWorksIsAnError) {
  const auto source =
      ChooseSource("auto", AllBut({Capability::kProcessVmsplice, Capability::kVmspliceSharesPages,
                                   Capability::kProcessVmReadv}));
  EXPECT_EQ(source.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(source.status().message(), HasSubstr("process-vm-readv"));
}

}  // namespace
}  // namespace predump::pagemap
