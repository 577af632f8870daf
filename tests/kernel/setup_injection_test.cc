#include "src/kernel/setup_injection.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/kernel/userfaultfd.h"
#include "tests/kernel/checked_child.h"
#include "tests/kernel/child_process.h"
#include "tests/kernel/process_snapshot.h"
#include "tests/kernel/vfork_parent.h"

namespace predump::kernel {
namespace {

struct Progress {
  std::atomic<long> steps;
  std::atomic<long> wrong;
  std::atomic<int> command;
  std::atomic<int> answer;
  std::atomic<int> answer_errno;
};

TEST(SetupInjectionTest, GivesUserfaultfdAndHelperAndLeavesNoTrace) {
  SharedValue<Progress> progress;
  ChildProcess child([&] {
    std::thread sleeper([] { ::pause(); });
    ComputeAndCheck(*progress);
  });
  ASSERT_TRUE(Eventually([&] { return progress->steps > 1000; }));
  const auto process = ProcessHandle::Open(child.pid());
  ASSERT_TRUE(process.ok()) << process.status();
  const ProcessSnapshot before = TakeSnapshot(*process);

  auto setup = InjectSetup(*process, {});
  ASSERT_TRUE(setup.ok()) << setup.status();
  ASSERT_TRUE(setup->userfaultfd_status.ok()) << setup->userfaultfd_status;
  ASSERT_TRUE(setup->helper_status.ok()) << setup->helper_status;
  ASSERT_TRUE(setup->helper.has_value());
  printf("setup stop: %.3f ms\n", absl::ToDoubleMilliseconds(setup->stopped));
  EXPECT_LT(setup->stopped, absl::Milliseconds(200));
  EXPECT_EQ(TakeSnapshot(*process), before);

  EXPECT_TRUE(Userfaultfd(std::move(setup->userfaultfd)).EnableWriteProtectAsync().ok());
  EXPECT_TRUE(setup->helper->Finish().ok());
  EXPECT_EQ(TakeSnapshot(*process), before);
  EXPECT_TRUE(AllZero(ReadPadding(*process)));
  const long steps = progress->steps;
  EXPECT_TRUE(Eventually([&] { return progress->steps > steps + 1000; }));
  EXPECT_EQ(progress->wrong, 0);
}

TEST(SetupInjectionTest, MedianStopOfASleepingTargetIsShort) {
  ChildProcess child([] {
    for (;;) ::pause();
  });
  const auto process = ProcessHandle::Open(child.pid());
  for (const bool helper : {false, true}) {
    std::vector<absl::Duration> stops;
    for (int i = 0; i < 51; ++i) {
      const auto setup = InjectSetup(*process, {.helper = helper});
      ASSERT_TRUE(setup.ok()) << setup.status();
      ASSERT_EQ(setup->helper.has_value(), helper) << setup->helper_status;
      stops.push_back(setup->stopped);
    }
    std::sort(stops.begin(), stops.end());
    printf("setup stop %s helper: shortest %.3f ms, median %.3f ms, longest %.3f ms\n",
           helper ? "with" : "without", absl::ToDoubleMilliseconds(stops.front()),
           absl::ToDoubleMilliseconds(stops[25]), absl::ToDoubleMilliseconds(stops.back()));
    EXPECT_LT(stops[25], absl::Milliseconds(50));
  }
}

TEST(SetupInjectionTest, WithoutHelperThePaddingIsZeroAgainAtOnce) {
  SharedValue<Progress> progress;
  ChildProcess child([&] { ComputeAndCheck(*progress); });
  ASSERT_TRUE(Eventually([&] { return progress->steps > 1000; }));
  const auto process = ProcessHandle::Open(child.pid());
  for (int i = 0; i < 100; ++i) {
    const auto setup = InjectSetup(*process, {.helper = false});
    ASSERT_TRUE(setup.ok()) << setup.status();
    ASSERT_TRUE(setup->userfaultfd.valid());
    ASSERT_TRUE(AllZero(ReadPadding(*process)));
  }
  EXPECT_EQ(progress->wrong, 0);
}

TEST(SetupInjectionTest, WaitsForAProcessWhoseOnlyThreadIsAVforkParent) {
  SharedValue<Progress> progress;
  ChildProcess child([&] {
    for (;;) {
      const pid_t vforked = ::vfork();
      if (vforked == 0) {
        const struct timespec nap = {0, 400'000'000};
        ::syscall(SYS_nanosleep, &nap, nullptr);
        ::_exit(0);
      }
      if (::waitpid(vforked, nullptr, 0) != vforked) ++progress->wrong;
      const struct timespec nap = {0, 10'000'000};
      if (::nanosleep(&nap, nullptr) != 0) ++progress->wrong;
      ++progress->steps;
    }
  });
  const auto process = ProcessHandle::Open(child.pid());
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(Eventually([&] { return ReadStat(*process)->state == 'D'; }));
    const auto setup = InjectSetup(*process, {});
    ASSERT_TRUE(setup.ok()) << setup.status();
    EXPECT_TRUE(setup->helper.has_value()) << setup->helper_status;
    EXPECT_LT(setup->stopped, absl::Milliseconds(300)) << "the wait is no part of the stop";
  }
  const long steps = progress->steps;
  EXPECT_TRUE(Eventually([&] { return progress->steps > steps; }));
  EXPECT_EQ(progress->wrong, 0);
}

TEST(SetupInjectionTest, RelativeTimeoutsGoOnWithTheTimeThatIsLeft) {
  struct Case {
    const char* name;
    void (*wait)();
  };
  const Case cases[] = {
      {"epoll_wait",
       [] {
         struct epoll_event event;
         ::epoll_wait(::epoll_create1(0), &event, 1, 600);
       }},
      {"epoll_pwait2",
       [] {
         static const struct timespec timeout = {0, 600'000'000};
         struct epoll_event event;
         ::syscall(SYS_epoll_pwait2, ::epoll_create1(0), &event, 1, &timeout, nullptr, 8);
       }},
      {"rt_sigtimedwait",
       [] {
         static const struct timespec timeout = {0, 600'000'000};
         sigset_t set;
         ::sigemptyset(&set);
         ::sigaddset(&set, SIGUSR2);
         ::sigprocmask(SIG_BLOCK, &set, nullptr);
         ::sigtimedwait(&set, nullptr, &timeout);
       }},
  };
  for (const Case& c : cases) {
    SharedValue<Progress> progress;
    ChildProcess child([&] {
      const base::Stopwatch watch;
      progress->answer = 1;
      c.wait();
      progress->steps = absl::ToInt64Milliseconds(watch.Elapsed());
      for (;;) ::pause();
    });
    ASSERT_TRUE(Eventually([&] { return progress->answer == 1; }));
    const auto process = ProcessHandle::Open(child.pid());
    for (int i = 0; i < 3; ++i) {
      SleepMs(150);
      const auto setup = InjectSetup(*process, {.helper = false});
      ASSERT_TRUE(setup.ok()) << setup.status();
    }
    ASSERT_TRUE(Eventually([&] { return progress->steps != 0; }));
    // Never early, and not begun anew (which would make it 1050).
    EXPECT_GE(progress->steps, 599) << c.name;
    EXPECT_LT(progress->steps, 850) << c.name;
  }
}

TEST(SetupInjectionTest, VforkParentThatNeverComesBackIsGivenUpAfterTheTimeout) {
  const VforkParent parent;
  const auto setup = InjectSetup(parent.process(), {.timeout = absl::Milliseconds(50)});
  EXPECT_EQ(setup.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(setup.status().message()),
              testing::HasSubstr("no thread that could be stopped"));
  EXPECT_EQ(ReadStatus(parent.process())->tracer_pid, 0);
}

// On a processor of its own, and before all others there where that is allowed.
void StayOnCpu(size_t cpu) {
  cpu_set_t only;
  CPU_ZERO(&only);
  CPU_SET(cpu, &only);
  ::sched_setaffinity(0, sizeof only, &only);
  const struct sched_param first = {.sched_priority = 1};
  ::sched_setscheduler(0, SCHED_FIFO, &first);
}

// Before even those, which otherwise leave it a twentieth of the processor it woke up on.
class RunsBeforeAll {
 public:
  RunsBeforeAll() {
    const struct sched_param first = {.sched_priority = 2};
    ::sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &first);
  }
  RunsBeforeAll(const RunsBeforeAll&) = delete;
  RunsBeforeAll& operator=(const RunsBeforeAll&) = delete;
  ~RunsBeforeAll() {
    const struct sched_param usual = {};
    ::sched_setscheduler(0, SCHED_OTHER, &usual);
  }
};

// On the processor of the thread to stop, the setup would hardly ever meet it between two states.
void RefuseToMove() {
  struct sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_sched_setaffinity, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  struct sock_fprog program = {.len = std::size(filter), .filter = filter};
  ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  if (::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) ::_exit(1);
}

struct VforkLoop {
  std::atomic<bool> hold;  // the child is to live on
  std::atomic<bool> held;  // it does
  std::atomic<long> waits;
  std::atomic<long> steps;
  std::atomic<long> setups;
  std::atomic<int> attached_afterwards;
  std::atomic<bool> failed;
};

// Now and then the leader is asked to stop just as it begins to wait for its vfork child. A look at
// it from here finds it so, and keeps the child alive for longer than anybody waits by himself.
TEST(SetupInjectionTest, ThreadThatBeginsAnUninterruptibleWaitIsLetGoOfAndAnotherTaken) {
  if (::sysconf(_SC_NPROCESSORS_ONLN) < 2) GTEST_SKIP() << "one processor";
  SharedValue<VforkLoop> loop;
  ChildProcess child([&] {
    std::thread([&] {
      for (;;) ++loop->steps;
    }).detach();
    StayOnCpu(1);
    volatile unsigned long work = 0;
    for (;;) {
      for (int i = 0; i < 200'000; ++i) work = work + 1;
      loop->held = false;
      if (::vfork() == 0) {
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        const struct timespec nap = {0, 10'000'000};
        do ::syscall(SYS_nanosleep, &nap, nullptr);
        while ((loop->held = loop->hold.load()));
        ::_exit(0);
      }
      ::wait(nullptr);
      ++loop->waits;
    }
  });
  const auto process = ProcessHandle::Open(child.pid());
  ASSERT_TRUE(Eventually([&] { return loop->waits > 0 && loop->steps > 0; }));
  ChildProcess engine([&] {
    StayOnCpu(0);
    RefuseToMove();
    for (;;) {
      const auto setup = InjectSetup(*process, {.helper = false, .timeout = absl::Seconds(20)});
      loop->attached_afterwards += ReadStatus(*process)->tracer_pid != 0;
      if (!setup.ok()) loop->failed = true;
      ++loop->setups;
    }
  });
  const auto met = [&] {
    const auto status = ReadStatus(*process);
    return status.ok() && status->state == 'D' && status->tracer_pid == engine.pid();
  };
  const RunsBeforeAll observer;
  ASSERT_TRUE(Eventually([&] {
    loop->hold = met();
    return loop->hold && loop->held;
  })) << "in "
      << loop->setups << " setups (failed: " << loop->failed << ") and " << loop->waits << " waits";
  SleepMs(1500);
  EXPECT_TRUE(met()) << "the setup did not wait for the thread";
  loop->hold = false;
  const long waits = loop->waits;
  EXPECT_TRUE(Eventually([&] { return loop->waits > waits + 2; }));
  EXPECT_EQ(loop->attached_afterwards, 0);
  EXPECT_FALSE(loop->failed);
}

// Whatever setups do in between, the last of the two decides.
TEST(SetupInjectionTest, StopAndContinueSignalsKeepTheirOrder) {
  SharedValue<Progress> progress;
  ChildProcess child([&] {
    for (int i = 0; i < 2; ++i) {
      std::thread([&] {
        for (;;) ++progress->command;
      }).detach();
    }
    ComputeAndCheck(*progress);
  });
  ASSERT_TRUE(Eventually([&] { return progress->steps > 1000; }));
  const auto process = ProcessHandle::Open(child.pid());
  int setups = 0;
  for (int round = 0; round < 60; ++round) {
    const bool stopped_at_last = round % 4 == 0;
    std::atomic<bool> done = false;
    std::thread sender([&] {
      for (int i = 0; i < 40; ++i) {
        ::kill(child.pid(), SIGSTOP);
        ::usleep(static_cast<useconds_t>(i * 7 % 50));
        ::kill(child.pid(), SIGCONT);
        ::usleep(static_cast<useconds_t>(i * 11 % 150));
      }
      if (stopped_at_last) ::kill(child.pid(), SIGSTOP);
      done = true;
    });
    while (!done) {
      const auto setup = InjectSetup(*process, {.helper = round % 2 == 0});
      if (setup.ok()) {
        ++setups;
        EXPECT_TRUE(setup->userfaultfd_status.ok()) << setup->userfaultfd_status;
        EXPECT_TRUE(setup->helper_status.ok()) << setup->helper_status;
      } else {
        EXPECT_TRUE(absl::IsFailedPrecondition(setup.status())) << setup.status();
      }
    }
    sender.join();
    if (stopped_at_last) {
      ASSERT_TRUE(Eventually([&] { return ReadStat(*process)->state == 'T'; })) << round;
      const long steps = progress->steps;
      SleepMs(2);
      ASSERT_EQ(progress->steps, steps) << round;
      ::kill(child.pid(), SIGCONT);
    }
    const long steps = progress->steps;
    const int others = progress->command;
    ASSERT_TRUE(Eventually([&] { return progress->steps > steps && progress->command != others; }))
        << round << ": it was left stopped";
  }
  EXPECT_GT(setups, 0);
  EXPECT_EQ(progress->wrong, 0);
}

TEST(SetupInjectionTest, StoppedProcessIsRefusedByName) {
  ChildProcess child([] {
    for (;;) ::pause();
  });
  const auto process = ProcessHandle::Open(child.pid());
  ::kill(child.pid(), SIGSTOP);
  ASSERT_TRUE(Eventually([&] { return ReadStat(*process)->state == 'T'; }));
  EXPECT_EQ(InjectSetup(*process, {}).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReadStat(*process)->state, 'T');
}

TEST(SetupInjectionTest, RestartableSequenceIsAbortedNotContinued) {
  SharedValue<RseqState> state;
  ChildProcess child([&] { SpinInsideRestartableSequence(*state); });
  volatile uint64_t& spins = state->spins;
  ASSERT_TRUE(Eventually([&] { return spins > 1000; }));
  const auto process = ProcessHandle::Open(child.pid());
  for (int i = 0; i < 20; ++i) {
    // Inside the sequence practically always: the loop is three instructions.
    const uint64_t aborts = state->aborts;
    const auto setup = InjectSetup(*process, {.helper = false});
    ASSERT_TRUE(setup.ok()) << setup.status();
    ASSERT_TRUE(Eventually([&] { return state->aborts > aborts; }));
  }
}

}  // namespace
}  // namespace predump::kernel
