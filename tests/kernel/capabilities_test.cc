#include "src/kernel/capabilities.h"

#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace predump::kernel {
namespace {

CapabilityResult MustProbe(Capability capability, const ProbeOptions& options = {}) {
  const auto result = Probe(capability, options);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.value_or(CapabilityResult{});
}

TEST(CapabilitiesTest, EveryCapabilityIsProbedOnceWithNameAndReason) {
  const auto results = ProbeAll();
  ASSERT_TRUE(results.ok()) << results.status();
  EXPECT_EQ(results->size(), static_cast<size_t>(Capability::kMemfd) + 1);
  for (size_t i = 0; i < results->size(); ++i) {
    const CapabilityResult& result = (*results)[i];
    EXPECT_EQ(static_cast<size_t>(result.capability), i);
    EXPECT_FALSE(result.name.empty());
    EXPECT_FALSE(result.reason.empty());
    printf("%-24s %-8s %-3s %s\n", result.name.c_str(), result.since.c_str(),
           result.available ? "yes" : "no", result.reason.c_str());
  }
}

TEST(CapabilitiesTest, WhatEverySupportedKernelHasIsFound) {
  for (const Capability capability :
       {Capability::kPidfdGetfd, Capability::kProcessVmReadv, Capability::kCloseRangeUnshare,
        Capability::kRseqConfiguration, Capability::kKcmp, Capability::kMemfd}) {
    const CapabilityResult result = MustProbe(capability);
    EXPECT_TRUE(result.available) << result.name << ": " << result.reason;
  }
}

TEST(CapabilitiesTest, ACallThatDoesNotExistIsNotTakenForProcessVmsplice) {
  const CapabilityResult result =
      MustProbe(Capability::kProcessVmsplice, {.process_vmsplice_number = 100'000});
  EXPECT_FALSE(result.available);
  EXPECT_THAT(result.reason, testing::HasSubstr("no system call has its number 100000"));
}

TEST(CapabilitiesTest, AnotherCallIsNotTakenForProcessVmsplice) {
  // write(pid, pipe, ...) and friends do something, but put no page into the pipe.
  for (const long number : {1L, 0L, 39L, 275L}) {
    const CapabilityResult result =
        MustProbe(Capability::kProcessVmsplice, {.process_vmsplice_number = number});
    EXPECT_FALSE(result.available) << number;
    EXPECT_THAT(result.reason, testing::HasSubstr("belongs to another system call"));
  }
}

// DESIGN 6: a kernel whose vmsplice copies gives no zero-copy source.
TEST(CapabilitiesTest, ACallThatCopiesIsNotTakenForZeroCopy) {
  EXPECT_TRUE(MustProbe(Capability::kVmspliceSharesPages).available);
  const CapabilityResult copying =
      MustProbe(Capability::kVmspliceSharesPages, {.vmsplice_number = SYS_writev});
  EXPECT_FALSE(copying.available);
  EXPECT_THAT(copying.reason, testing::HasSubstr("it copies the pages"));
}

TEST(CapabilitiesTest, ProbesLeaveNoChild) {
  ASSERT_TRUE(ProbeAll().ok());
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG | __WALL), -1);
  EXPECT_EQ(errno, ECHILD);
}

}  // namespace
}  // namespace predump::kernel
