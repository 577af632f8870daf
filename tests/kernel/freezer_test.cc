#include "src/kernel/freezer.h"

#include <errno.h>
#include <pthread.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <optional>
#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/errors.h"
#include "src/kernel/setup_injection.h"
#include "tests/kernel/child_process.h"
#include "tests/kernel/process_snapshot.h"

namespace predump::kernel {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(2);

struct Storm {
  std::atomic<long> made;
  std::atomic<int> stop;
};

// What is listed and not frozen: true if it is on its way out, and runs no code of the process.
bool OthersAreExiting(const ProcessHandle& process, FrozenProcess& frozen) {
  const auto tids = ListThreads(process);
  if (!tids.ok()) return false;
  for (const pid_t tid : *tids) {
    constexpr uint32_t kExiting = 0x4;  // PF_EXITING
    const auto is_this = [&](const Tracee& thread) { return thread.tid() == tid; };
    if (std::any_of(frozen.threads().begin(), frozen.threads().end(), is_this)) continue;
    const auto stat = ReadThreadStat(process, tid);
    if (stat.ok() && (stat->flags & kExiting) == 0) return false;
  }
  return true;
}

// Each thread makes the next one and ends: one that was listed is gone when its turn comes, and has
// a successor that was not listed.
void* EndWithASuccessor(void* storm_address) {
  auto* storm = static_cast<Storm*>(storm_address);
  ++storm->made;
  if (storm->stop != 0) return nullptr;
  pthread_attr_t attributes;
  ::pthread_attr_init(&attributes);
  ::pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_t next;
  while (::pthread_create(&next, &attributes, EndWithASuccessor, storm) != 0) {
  }
  ::pthread_attr_destroy(&attributes);
  return nullptr;
}

TEST(FreezerTest, CatchesTheLastOfAChainOfThreads) {
  SharedValue<Storm> storm;
  ChildProcess child([&] {
    for (int i = 0; i < 2; ++i) EndWithASuccessor(&*storm);
    while (storm->stop == 0) ::usleep(1000);
  });
  const auto process = ProcessHandle::Open(child.pid());
  ASSERT_TRUE(Eventually([&] { return storm->made > 100; }));
  for (int i = 0; i < 2000; ++i) {
    auto frozen = FrozenProcess::Freeze(*process, kTimeout);
    ASSERT_TRUE(frozen.ok()) << frozen.status();
    const long made = storm->made;
    ASSERT_TRUE(OthersAreExiting(*process, *frozen));
    ASSERT_EQ(storm->made, made) << "a thread ran while frozen";
    ASSERT_TRUE(std::move(*frozen).Thaw().ok());
    ASSERT_TRUE(Eventually([&] { return storm->made > made; }));
  }
  storm->stop = 1;
  EXPECT_EQ(child.Reap(), 0);
}

TEST(FreezerTest, CatchesEveryThreadOfAStorm) {
  SharedValue<Storm> storm;
  ChildProcess child([&] {
    const auto breed = [&] {
      while (storm->stop == 0) {
        std::thread([&] { ++storm->made; }).join();
      }
    };
    std::thread others[3] = {std::thread(breed), std::thread(breed), std::thread(breed)};
    breed();
    for (std::thread& other : others) other.join();
  });
  const auto process = ProcessHandle::Open(child.pid());
  ASSERT_TRUE(Eventually([&] { return storm->made > 100; }));
  for (int i = 0; i < 1000; ++i) {
    auto frozen = FrozenProcess::Freeze(*process, kTimeout);
    ASSERT_TRUE(frozen.ok()) << frozen.status();
    ASSERT_EQ(frozen->threads().front().tid(), child.pid());
    const long made = storm->made;
    ASSERT_TRUE(OthersAreExiting(*process, *frozen));
    if (i % 20 == 0) SleepMs(2);
    ASSERT_EQ(storm->made, made) << "a thread ran while frozen";
    ASSERT_TRUE(std::move(*frozen).Thaw().ok());
    ASSERT_TRUE(Eventually([&] { return storm->made > made; }));
  }
  storm->stop = 1;
  EXPECT_EQ(child.Reap(), 0);
}

TEST(FreezerTest, VforkParentIsNamedAndEverythingRunsOn) {
  SharedValue<Storm> storm;
  ChildProcess child([&] {
    std::thread counter([&] {
      while (storm->stop == 0) ++storm->made;
    });
    ::pthread_setname_np(::pthread_self(), "waiter");
    const pid_t vforked = ::vfork();
    if (vforked == 0) {
      while (*static_cast<volatile int*>(reinterpret_cast<int*>(&storm->stop)) == 0) {
        const struct timespec nap = {0, 1'000'000};
        ::nanosleep(&nap, nullptr);
      }
      ::_exit(0);
    }
    ::waitpid(vforked, nullptr, 0);
    counter.join();
  });
  const auto process = ProcessHandle::Open(child.pid());
  ASSERT_TRUE(Eventually([&] { return ReadStat(*process)->state == 'D'; }));
  const auto frozen = FrozenProcess::Freeze(*process, absl::Milliseconds(50));
  EXPECT_EQ(frozen.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(frozen.status().message()),
              testing::HasSubstr(absl::StrCat("thread ", child.pid(), " (waiter)")));
  EXPECT_EQ(ReadStatus(*process)->tracer_pid, 0);
  const long made = storm->made;
  EXPECT_TRUE(Eventually([&] { return storm->made > made; }));
  storm->stop = 1;
  EXPECT_EQ(child.Reap(), 0);
}

TEST(FreezerTest, StoppedProcessStaysStoppedAfterTheThaw) {
  ChildProcess child([] {
    for (;;) ::pause();
  });
  const auto process = ProcessHandle::Open(child.pid());
  ::kill(child.pid(), SIGSTOP);
  ASSERT_TRUE(Eventually([&] { return ReadStat(*process)->state == 'T'; }));
  auto frozen = FrozenProcess::Freeze(*process, kTimeout);
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  EXPECT_TRUE(frozen->was_stopped());
  ASSERT_TRUE(std::move(*frozen).Thaw().ok());
  ASSERT_TRUE(Eventually([&] { return ReadStat(*process)->state == 'T'; }));
  SleepMs(5);
  EXPECT_EQ(ReadStat(*process)->state, 'T');
  ::kill(child.pid(), SIGCONT);
  EXPECT_TRUE(Eventually([&] { return ReadStat(*process)->state == 'S'; }));
}

TEST(FreezerTest, TracedProcessIsRefusedNamingTheTracer) {
  SharedValue<Storm> storm;
  ChildProcess child([] {
    for (;;) ::pause();
  });
  ChildProcess tracer([&] {
    ::ptrace(PTRACE_SEIZE, child.pid(), nullptr, nullptr);
    storm->made = 1;
    for (;;) ::pause();
  });
  ASSERT_TRUE(Eventually([&] { return storm->made == 1; }));
  const auto process = ProcessHandle::Open(child.pid());
  const auto frozen = FrozenProcess::Freeze(*process, kTimeout);
  EXPECT_EQ(frozen.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(frozen.status().message()),
              testing::HasSubstr(absl::StrCat("traced by process ", tracer.pid())));
}

TEST(FreezerTest, ExitedProcessIsTargetExited) {
  ChildProcess child([] {
    for (;;) ::pause();
  });
  const auto process = ProcessHandle::Open(child.pid());
  child.Kill();
  EXPECT_TRUE(base::IsTargetExited(FrozenProcess::Freeze(*process, kTimeout).status()));
  EXPECT_TRUE(base::IsTargetExited(InjectSetup(*process, {}).status()));
}

// A thread's zombie that is left to its tracer would hide the end of the process from everybody.
TEST(FreezerTest, ProcessKilledWhileFrozenIsGoneAfterTheThaw) {
  for (const bool told : {true, false}) {
    ChildProcess child([] {
      for (int i = 0; i < 3; ++i) {
        std::thread([] {
          for (;;) ::pause();
        }).detach();
      }
      for (;;) ::pause();
    });
    const auto process = ProcessHandle::Open(child.pid());
    ASSERT_TRUE(Eventually([&] { return ListThreads(*process)->size() == 4; }));
    {
      auto frozen = FrozenProcess::Freeze(*process, kTimeout);
      ASSERT_TRUE(frozen.ok()) << frozen.status();
      ::kill(child.pid(), SIGKILL);
      if (told) {
        EXPECT_TRUE(base::IsTargetExited(std::move(*frozen).Thaw()));
      }
    }
    EXPECT_TRUE(*process->WaitForExit(absl::Seconds(5)));
  }
}

constexpr int kSignals = 4000;

struct SignalCount {
  std::array<std::atomic<int>, kSignals> seen;
  std::atomic<int> total;
  std::atomic<int> wrong_sender;
  std::atomic<int> ready;
};
SignalCount* g_count;

TEST(FreezerTest, QueuedSignalsAreNeitherLostNorDoubled) {
  SharedValue<SignalCount> count;
  g_count = &*count;
  const pid_t sender = ::getpid();
  ChildProcess child([&] {
    struct sigaction action = {};
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    action.sa_sigaction = [](int, siginfo_t* info, void*) {
      ++g_count->seen[static_cast<size_t>(info->si_value.sival_int)];
      if (info->si_code != SI_QUEUE || info->si_uid != ::getuid()) ++g_count->wrong_sender;
      ++g_count->total;
    };
    ::sigaction(SIGRTMIN, &action, nullptr);
    std::thread other([] {
      for (;;) ::pause();
    });
    count->ready = 1;
    volatile unsigned long work = 0;
    for (;;) work = work + 1;
  });
  ASSERT_TRUE(Eventually([&] { return count->ready == 1; }));
  ASSERT_EQ(sender, ::getpid());
  const auto process = ProcessHandle::Open(child.pid());
  std::atomic<bool> done = false;
  std::thread queue([&] {
    for (int i = 0; i < kSignals; ++i) {
      union sigval value = {};
      value.sival_int = i;
      while (::sigqueue(child.pid(), SIGRTMIN, value) != 0) ::usleep(100);
      if (i % 8 == 0) ::usleep(50);
    }
    done = true;
  });
  int freezes = 0;
  while (!done) {
    auto frozen = FrozenProcess::Freeze(*process, kTimeout);
    EXPECT_TRUE(frozen.ok()) << frozen.status();
    if (frozen.ok()) {
      EXPECT_TRUE(std::move(*frozen).Thaw().ok());
    }
    const auto setup = InjectSetup(*process, {.helper = freezes % 4 == 0});
    EXPECT_TRUE(setup.ok()) << setup.status();
    ++freezes;
  }
  queue.join();
  EXPECT_TRUE(Eventually([&] { return count->total >= kSignals; })) << count->total;
  SleepMs(5);
  EXPECT_EQ(count->total, kSignals);
  EXPECT_EQ(count->wrong_sender, 0);
  for (int i = 0; i < kSignals; ++i) ASSERT_EQ(count->seen[static_cast<size_t>(i)], 1) << i;
  printf("%d freezes and setups during %d signals\n", freezes, kSignals);
}

TEST(FreezerTest, CpuFollowerPutsTheAffinityBack) {
  ChildProcess child([] {
    for (;;) ::pause();
  });
  const auto process = ProcessHandle::Open(child.pid());
  cpu_set_t before;
  cpu_set_t after;
  ::pthread_getaffinity_np(::pthread_self(), sizeof before, &before);
  {
    const CpuFollower follower(*process);
    EXPECT_TRUE(follower.moved());
    EXPECT_EQ(::sched_getcpu(), ReadStat(*process)->last_cpu);
  }
  ::pthread_getaffinity_np(::pthread_self(), sizeof after, &after);
  EXPECT_TRUE(CPU_EQUAL(&before, &after));
}

}  // namespace
}  // namespace predump::kernel
