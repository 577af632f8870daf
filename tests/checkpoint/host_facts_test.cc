#include "src/checkpoint/host_facts.h"

#include <unistd.h>

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/checkpoint/cpu.h"

namespace predump::checkpoint {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

proto::HostFacts Here() {
  const auto facts = ReadHostFacts();
  EXPECT_TRUE(facts.ok()) << facts.status();
  return facts.ok() ? *facts : proto::HostFacts();
}

TEST(HostFacts, DescribeThisMachine) {
  const proto::HostFacts facts = Here();
  EXPECT_EQ(facts.page_size_bytes(), static_cast<uint64_t>(::sysconf(_SC_PAGESIZE)));
  EXPECT_EQ(facts.vdso_sha256().size(), 32u);
  EXPECT_GT(facts.vdso_size_bytes(), 0u);
  EXPECT_GT(facts.vvar_size_bytes(), 0u);
  EXPECT_EQ(facts.boot_id().size(), 36u);
  EXPECT_EQ(facts.cpuid_features_size(), kCpuidWords);
  EXPECT_EQ(facts.xstate_features() & 3, 3u);
  EXPECT_GE(facts.xsave_size_bytes(), 576u);
  EXPECT_GT(facts.boottime_ns(), 0);
}

TEST(HostFacts, AHostSuitsItself) { EXPECT_THAT(CompareHosts(Here(), Here()), IsEmpty()); }

TEST(HostFacts, AnotherKernelReleaseAloneIsNoObstacle) {
  proto::HostFacts target = Here();
  target.set_kernel_release("9.9");
  target.set_boot_id("another");
  EXPECT_THAT(CompareHosts(Here(), target), IsEmpty());
}

TEST(HostFacts, AMissingInstructionIsNamed) {
  proto::HostFacts target = Here();
  target.set_cpuid_features(kLeaf1Edx, target.cpuid_features(kLeaf1Edx) & ~(1u << 26));
  const auto blockers = CompareHosts(Here(), target);
  ASSERT_EQ(blockers.size(), 1u);
  EXPECT_EQ(blockers[0].reason(), "missing at the target: sse2");
  EXPECT_THAT(CompareHosts(target, Here()), IsEmpty()) << "more features at the target are fine";
}

TEST(HostFacts, WordsThatAPeerDoesNotKnowCountAsZero) {
  proto::HostFacts target = Here();
  target.clear_cpuid_features();
  EXPECT_THAT(CompareHosts(Here(), target).at(0).reason(), HasSubstr("fpu"));
}

TEST(HostFacts, EachOtherDifferenceIsRefused) {
  proto::HostFacts target = Here();
  target.set_vdso_sha256(std::string(32, 'x'));
  EXPECT_EQ(CompareHosts(Here(), target).at(0).what(), "host vDSO");
  target = Here();
  target.set_vvar_size_bytes(1);
  EXPECT_EQ(CompareHosts(Here(), target).at(0).what(), "host vDSO");
  target = Here();
  target.set_page_size_bytes(65536);
  EXPECT_EQ(CompareHosts(Here(), target).at(0).what(), "host page size");
  target = Here();
  target.set_cpu_vendor("Another");
  EXPECT_EQ(CompareHosts(Here(), target).at(0).what(), "host processor");
  target = Here();
  target.set_xstate_features(1);
  EXPECT_EQ(CompareHosts(Here(), target).at(0).what(), "host extended state");
}

TEST(MissingCpuFeatures, IgnoresWhatProgramsCannotUse) {
  // Leaf 1, ecx bit 5 is virtualization.
  const uint32_t have[] = {1u << 5 | 1u << 0};
  const uint32_t none[] = {0};
  EXPECT_THAT(MissingCpuFeatures(have, none), ElementsAre("sse3"));
}

}  // namespace
}  // namespace predump::checkpoint
