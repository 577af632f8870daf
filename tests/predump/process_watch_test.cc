#include "src/predump/process_watch.h"

#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "tests/kernel/child_process.h"

namespace predump {
namespace {

using kernel::ChildProcess;
using kernel::ProcessHandle;
using kernel::SharedValue;

struct Orders {
  std::atomic<int> reap;
  std::atomic<int> ready;
};

class ProcessWatchTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends_), 0); }
  void TearDown() override {
    ::close(ends_[0]);
    ::close(ends_[1]);
  }

  static ProcessWatch WatchOf(const ProcessHandle& process) {
    return *ProcessWatch::Create(process, /*use_bpf=*/false);
  }

  int ends_[2];
};

void NapMs(int milliseconds) {
  const struct timespec nap = {0, milliseconds * 1'000'000};
  ::nanosleep(&nap, nullptr);
}

TEST_F(ProcessWatchTest, AProcessWithoutChildrenIsNotWaitedFor) {
  ChildProcess child([] { ::pause(); });
  const auto process = ProcessHandle::Open(child.pid());
  const auto childless = WatchOf(*process).WaitForNoChildren(absl::ZeroDuration(), ends_[0]);
  ASSERT_TRUE(childless.ok()) << childless.status();
  EXPECT_TRUE(*childless);
}

TEST_F(ProcessWatchTest, ChildrenThatComeAndGoAreWaitedForOneByOne) {
  SharedValue<Orders> orders;
  ChildProcess child([&] {
    for (int i = 0; i < 3; ++i) {
      const pid_t short_lived = ::fork();
      if (short_lived == 0) {
        NapMs(30);
        ::_exit(0);
      }
      orders->ready = 1;
      ::waitpid(short_lived, nullptr, 0);
    }
    ::pause();
  });
  ASSERT_TRUE(kernel::Eventually([&] { return orders->ready == 1; }));
  const auto process = ProcessHandle::Open(child.pid());
  const ProcessWatch watch = WatchOf(*process);
  const auto childless = watch.WaitForNoChildren(absl::Seconds(5), ends_[0]);
  ASSERT_TRUE(childless.ok()) << childless.status();
  EXPECT_TRUE(*childless);
}

TEST_F(ProcessWatchTest, AnExitedChildIsOneUntilItIsReaped) {
  SharedValue<Orders> orders;
  ChildProcess child([&] {
    const pid_t zombie = ::fork();
    if (zombie == 0) ::_exit(0);
    orders->ready = 1;
    while (orders->reap == 0) NapMs(1);
    ::waitpid(zombie, nullptr, 0);
    ::pause();
  });
  ASSERT_TRUE(kernel::Eventually([&] { return orders->ready == 1; }));
  const auto process = ProcessHandle::Open(child.pid());
  const ProcessWatch watch = WatchOf(*process);
  auto childless = watch.WaitForNoChildren(absl::Milliseconds(30), ends_[0]);
  ASSERT_TRUE(childless.ok()) << childless.status();
  EXPECT_FALSE(*childless);
  orders->reap = 1;
  childless = watch.WaitForNoChildren(absl::Seconds(5), ends_[0]);
  ASSERT_TRUE(childless.ok()) << childless.status();
  EXPECT_TRUE(*childless);
}

TEST_F(ProcessWatchTest, ShuttingDownTheDescriptorEndsTheWait) {
  SharedValue<Orders> orders;
  ChildProcess child([&] {
    if (::fork() == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      orders->ready = 1;
      for (;;) ::pause();
    }
    for (;;) ::pause();
  });
  ASSERT_TRUE(kernel::Eventually([&] { return orders->ready == 1; }));
  const auto process = ProcessHandle::Open(child.pid());
  ::shutdown(ends_[0], SHUT_RDWR);
  const base::Stopwatch watch;
  const auto childless = WatchOf(*process).WaitForNoChildren(absl::Minutes(1), ends_[0]);
  ASSERT_TRUE(childless.ok()) << childless.status();
  EXPECT_FALSE(*childless);
  EXPECT_LT(watch.Elapsed(), absl::Seconds(30));
}

TEST_F(ProcessWatchTest, TheProcessExitEndsTheWait) {
  SharedValue<Orders> orders;
  ChildProcess child([&] {
    if (::fork() == 0) {
      orders->ready = 1;
      NapMs(300);
      ::_exit(0);
    }
    NapMs(50);
  });
  ASSERT_TRUE(kernel::Eventually([&] { return orders->ready == 1; }));
  const auto process = ProcessHandle::Open(child.pid());
  const ProcessWatch watch = WatchOf(*process);
  EXPECT_TRUE(base::IsTargetExited(watch.WaitForNoChildren(absl::Minutes(1), ends_[0]).status()));
}

}  // namespace
}  // namespace predump
