// Calls and signals of a process go on as if no readout had been.
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <thread>
#include <utility>

#include "gtest/gtest.h"
#include "src/base/clock.h"
#include "tests/kernel/checked_child.h"
#include "tests/kernel/child_process.h"
#include "tests/kernel/process_snapshot.h"
#include "tests/kernel/readout_calls.h"

namespace predump::kernel {
namespace {

int64_t FailedCall(long result) { return result < 0 ? -errno : result; }

// Each is made with a time to wait of 400 ms, and has to take that long: neither shorter, nor begun
// anew after each readout.
const std::pair<const char*, std::function<int64_t()>> kTimedCalls[] = {
    {"nanosleep",
     [] {
       const struct timespec time = {0, 400'000'000};
       return FailedCall(::syscall(SYS_nanosleep, &time, nullptr));
     }},
    {"clock_nanosleep",
     [] {
       const struct timespec time = {0, 400'000'000};
       return FailedCall(::syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &time, nullptr));
     }},
    {"poll", [] { return FailedCall(::syscall(SYS_poll, nullptr, 0, 400)); }},
    {"futex",
     [] {
       uint32_t word = 7;
       const struct timespec time = {0, 400'000'000};
       const int64_t result =
           FailedCall(::syscall(SYS_futex, &word, FUTEX_WAIT, 7, &time, nullptr, 0));
       return result == -ETIMEDOUT ? 0 : result - 1000;
     }},
    {"select",
     [] {
       struct timeval time = {0, 400'000};
       return FailedCall(::syscall(SYS_select, 0, nullptr, nullptr, nullptr, &time));
     }},
};

TEST(ReadoutInjectionTest, TimedCallsGoOnWithTheirTime) {
  for (const auto& [name, call] : kTimedCalls) {
    SharedValue<std::atomic<int64_t>> took;
    SharedValue<std::atomic<int64_t>> result;
    ChildProcess child([&, call = call] {
      const int64_t start = base::MonotonicNanoseconds();
      *result = call();
      *took = base::MonotonicNanoseconds() - start;
      for (;;) ::pause();
    });
    const auto process = ProcessHandle::Open(child.pid());
    ASSERT_TRUE(Eventually([&] { return ReadStat(*process)->state == 'S'; }));
    // A call begun anew by each would last for all of them, however slow the machine.
    for (int i = 0; i < 50 && *took == 0; ++i) {
      const absl::Status status = FreezeAndReadOut(*process);
      ASSERT_TRUE(status.ok()) << name << ": " << status;
      SleepMs(40);
    }
    EXPECT_GE(*took, 400'000'000) << name << " began anew, or ended early";
    EXPECT_EQ(*result, 0) << name;
  }
}

TEST(ReadoutInjectionTest, WaitingCallsReturnNoEintr) {
  SharedValue<Progress> progress;
  ChildProcess child([&] {
    int ends[2];
    if (::pipe(ends) != 0) ::_exit(1);
    const auto repeat = [&](auto call) {
      std::thread([&progress, call] {
        for (;;) {
          if (call() < 0) ++progress->wrong;
          ++progress->returns;
        }
      }).detach();
    };
    repeat([] {
      const int epoll = ::epoll_create1(0);
      struct epoll_event event;
      const int result = ::epoll_wait(epoll, &event, 1, 30);
      ::close(epoll);
      return static_cast<long>(result);
    });
    repeat([&] {
      char byte;
      return static_cast<long>(::read(ends[0], &byte, 1));
    });
    repeat([] {
      struct timespec time = {0, 30'000'000};
      sigset_t mask;
      sigemptyset(&mask);
      return static_cast<long>(::ppoll(nullptr, 0, &time, &mask));
    });
    for (;;) {
      const struct timespec nap = {0, 5'000'000};
      if (::nanosleep(&nap, nullptr) != 0) ++progress->wrong;
      if (::write(ends[1], "x", 1) != 1) ++progress->wrong;
      ++progress->steps;
    }
  });
  const auto process = ProcessHandle::Open(child.pid());
  ASSERT_TRUE(Eventually([&] { return progress->returns > 10; }));
  for (int i = 0; i < 200; ++i) {
    const absl::Status status = FreezeAndReadOut(*process);
    ASSERT_TRUE(status.ok()) << status;
  }
  const long returns = progress->returns;
  EXPECT_TRUE(Eventually([&] { return progress->returns > returns + 20; }));
  EXPECT_EQ(progress->wrong, 0);
}

std::atomic<long>* handled = nullptr;

TEST(ReadoutInjectionTest, SignalsAreNeitherLostNorDoubled) {
  SharedValue<std::atomic<long>> count;
  SharedValue<Progress> progress;
  handled = &*count;
  ChildProcess child([&] {
    struct sigaction action = {};
    action.sa_handler = [](int) { handled->fetch_add(1); };
    action.sa_flags = SA_RESTART;
    ::sigaction(SIGRTMIN, &action, nullptr);
    ComputeAndCheck(*progress);
  });
  ASSERT_TRUE(Eventually([&] { return progress->steps > 100; }));
  const auto process = ProcessHandle::Open(child.pid());
  std::atomic<bool> stop = false;
  std::atomic<long> sent = 0;
  std::thread sender([&] {
    while (!stop) {
      if (::sigqueue(child.pid(), SIGRTMIN, {.sival_int = 0}) == 0) ++sent;
      ::usleep(50);
    }
  });
  absl::Status status;
  for (int i = 0; i < 500 && status.ok(); ++i) status = FreezeAndReadOut(*process);
  stop = true;
  sender.join();
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(Eventually([&] { return *count == sent; })) << *count << " of " << sent;
  EXPECT_GT(sent, 500);
}

TEST(ReadoutInjectionTest, StopSignalThatComesMeanwhileStopsTheProcessAfterwards) {
  SharedValue<Progress> progress;
  ChildProcess child([&] { ComputeAndCheck(*progress); });
  ASSERT_TRUE(Eventually([&] { return progress->steps > 100; }));
  const auto process = ProcessHandle::Open(child.pid());
  for (int i = 0; i < 20; ++i) {
    auto frozen = FrozenProcess::Freeze(*process, absl::Seconds(5));
    ASSERT_TRUE(frozen.ok()) << frozen.status();
    ASSERT_EQ(::kill(child.pid(), SIGSTOP), 0);
    const long steps = progress->steps;
    const auto answers = ReadOut(*frozen, SomeCalls(1));
    ASSERT_TRUE(answers.ok()) << answers.status();
    ASSERT_TRUE(std::move(*frozen).Thaw().ok());
    ASSERT_TRUE(Eventually([&] { return ReadStat(*process)->state == 'T'; }));
    EXPECT_EQ(progress->steps, steps);
    EXPECT_TRUE(absl::IsFailedPrecondition(FreezeAndReadOut(*process))) << "it is stopped";
    ASSERT_TRUE(Eventually([&] { return ReadStat(*process)->state == 'T'; }));
    EXPECT_EQ(progress->steps, steps);
    ASSERT_EQ(::kill(child.pid(), SIGCONT), 0);
    ASSERT_TRUE(Eventually([&] { return progress->steps > steps; }));
  }
}

}  // namespace
}  // namespace predump::kernel
