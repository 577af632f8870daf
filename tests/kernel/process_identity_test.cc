#include "src/kernel/process_identity.h"

#include <unistd.h>

#include <thread>

#include "gtest/gtest.h"
#include "tests/kernel/child_process.h"

namespace predump::kernel {
namespace {

class ProcessIdentityTest : public ::testing::Test {
 protected:
  ProcessIdentityTest() : child_([] { ::pause(); }) {
    identity_ = *ProcessIdentity::Of(*ProcessHandle::Open(child_.pid()));
  }

  bool Found() {
    const auto found = FindProcess(identity_);
    EXPECT_TRUE(found.ok()) << found.status();
    return found.ok() && found->has_value();
  }

  ChildProcess child_;
  ProcessIdentity identity_;
};

TEST_F(ProcessIdentityTest, AProcessIsFoundUntilItExits) {
  EXPECT_TRUE(Found());
  EXPECT_EQ((*FindProcess(identity_))->pid(), child_.pid());
  child_.Kill();
  EXPECT_FALSE(Found());
}

TEST_F(ProcessIdentityTest, ARecycledNumberIsAnotherProcess) {
  ++identity_.start_time_ticks;
  EXPECT_FALSE(Found());
}

TEST_F(ProcessIdentityTest, AfterARestartNothingIsLeft) {
  identity_.boot_id = "another";
  // What it was a number of then does not matter any more.
  ++identity_.pid_namespace;
  EXPECT_FALSE(Found());
}

TEST_F(ProcessIdentityTest, AThreadOfSomebodyElseIsNotTheProcess) {
  std::thread([this] {
    identity_.pid = ::gettid();
    EXPECT_FALSE(Found());
  }).join();
}

TEST_F(ProcessIdentityTest, ANumberOfAnotherPidNamespaceTellsNothing) {
  ++identity_.pid_namespace;
  EXPECT_TRUE(absl::IsFailedPrecondition(FindProcess(identity_).status()));
  child_.Kill();
  EXPECT_TRUE(absl::IsFailedPrecondition(FindProcess(identity_).status()));
}

TEST_F(ProcessIdentityTest, ANumberOfAnUnnamedNamespaceIsTakenForOurs) {
  identity_.pid_namespace = 0;
  EXPECT_TRUE(Found());
}

}  // namespace
}  // namespace predump::kernel
