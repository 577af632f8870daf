// Processes that stay stopped without their engine, and are let go on or ended.
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include <atomic>
#include <thread>

#include "gtest/gtest.h"
#include "src/kernel/freezer.h"
#include "src/kernel/procfs_task.h"
#include "tests/kernel/child_process.h"

namespace predump::kernel {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(2);

struct Parked {
  std::atomic<long> steps[4];
  std::atomic<int> continued;
  std::atomic<int> ready;
};
Parked* g_parked;

long Steps(Parked& parked) {
  long sum = 0;
  for (const auto& steps : parked.steps) sum += steps;
  return sum;
}

void CountInFourThreads(Parked& parked) {
  g_parked = &parked;
  ::signal(SIGCONT, [](int) { ++g_parked->continued; });
  const auto count = [&](int i) {
    for (;;) ++parked.steps[i];
  };
  for (int i = 1; i < 4; ++i) std::thread(count, i).detach();
  parked.ready = 1;
  count(0);
}

bool AllFourMove(Parked& parked) {
  for (auto& steps : parked.steps) {
    const long before = steps;
    if (!Eventually([&] { return steps > before; })) return false;
  }
  return true;
}

// Freezes a process, queues the stop for it, and does no more until it is killed.
struct Engine {
  explicit Engine(const ProcessHandle& process)
      : child([this, &process] {
          auto frozen = FrozenProcess::Freeze(process, kTimeout);
          if (!frozen.ok() || !frozen->QueueStop().ok()) ::_exit(1);
          *queued = 1;
          for (;;) ::pause();
        }) {}
  bool HasQueuedTheStop() {
    return Eventually([this] { return *queued == 1; });
  }

  SharedValue<std::atomic<int>> queued;
  ChildProcess child;
};

TEST(FreezerTest, SwallowedStopLeavesNothing) {
  SharedValue<Parked> parked;
  ChildProcess child([&] { CountInFourThreads(*parked); });
  ASSERT_TRUE(Eventually([&] { return parked->ready == 1; }));
  ASSERT_TRUE(AllFourMove(*parked));
  const auto process = ProcessHandle::Open(child.pid());
  for (int i = 0; i < 20; ++i) {
    auto frozen = FrozenProcess::Freeze(*process, kTimeout);
    ASSERT_TRUE(frozen.ok()) << frozen.status();
    ASSERT_TRUE(frozen->QueueStop().ok());
    const long steps = Steps(*parked);
    ASSERT_TRUE(std::move(*frozen).SwallowStopAndThaw().ok());
    ASSERT_TRUE(Eventually([&] { return Steps(*parked) > steps; }));
  }
  EXPECT_TRUE(AllFourMove(*parked));
  EXPECT_EQ(ReadStatus(*process)->pending_process, 0u);
  EXPECT_EQ(parked->continued, 0);
  EXPECT_EQ(::waitpid(child.pid(), nullptr, WUNTRACED | WNOHANG), 0) << "its parent saw a stop";
}

TEST(FreezerTest, ParkedProcessOutlivesItsEngineAndIsResumedUnseen) {
  SharedValue<Parked> parked;
  ChildProcess child([&] { CountInFourThreads(*parked); });
  ASSERT_TRUE(Eventually([&] { return parked->ready == 1; }));
  ASSERT_TRUE(AllFourMove(*parked));
  const auto process = ProcessHandle::Open(child.pid());
  for (int i = 0; i < 10; ++i) {
    Engine engine(*process);
    ASSERT_TRUE(engine.HasQueuedTheStop());
    const long steps = Steps(*parked);
    engine.child.Kill();
    ASSERT_TRUE(Eventually([&] { return ReadStat(*process)->state == 'T'; }));
    SleepMs(5);
    ASSERT_EQ(Steps(*parked), steps) << "a user instruction ran";
    const absl::Status resumed = FrozenProcess::UnparkAndResume(*process, kTimeout);
    ASSERT_TRUE(resumed.ok()) << resumed;
    ASSERT_TRUE(AllFourMove(*parked));
  }
  EXPECT_EQ(parked->continued, 0) << "the application's handler saw SIGCONT";
  EXPECT_EQ(FrozenProcess::UnparkAndResume(*process, kTimeout).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(AllFourMove(*parked));
}

// What `predump resolve` meets right after an engine died: the process is still on its way to the
// stop that is queued for it.
TEST(FreezerTest, ProcessOnItsWayToTheStopIsResumedAtOnceAfterItsEngineDied) {
  SharedValue<Parked> parked;
  ChildProcess child([&] { CountInFourThreads(*parked); });
  ASSERT_TRUE(Eventually([&] { return parked->ready == 1; }));
  ASSERT_TRUE(AllFourMove(*parked));
  const auto process = ProcessHandle::Open(child.pid());
  for (int i = 0; i < 200; ++i) {
    Engine engine(*process);
    ASSERT_TRUE(engine.HasQueuedTheStop());
    if (i % 2 == 0) {
      engine.child.Kill();
    } else {
      ::kill(engine.child.pid(), SIGKILL);  // not even its death is waited for
    }
    const absl::Status resumed = FrozenProcess::UnparkAndResume(*process, kTimeout);
    ASSERT_TRUE(resumed.ok()) << i << ": " << resumed;
    const long steps = Steps(*parked);
    ASSERT_TRUE(Eventually([&] { return Steps(*parked) > steps; })) << i;
  }
  ASSERT_TRUE(AllFourMove(*parked));
  EXPECT_EQ(parked->continued, 0) << "the application's handler saw SIGCONT";
}

TEST(FreezerTest, ProcessOnItsWayToTheStopIsKilledAtOnceAfterItsEngineDied) {
  for (int i = 0; i < 50; ++i) {
    SharedValue<Parked> parked;
    ChildProcess child([&] { CountInFourThreads(*parked); });
    ASSERT_TRUE(Eventually([&] { return parked->ready == 1; }));
    const auto process = ProcessHandle::Open(child.pid());
    Engine engine(*process);
    ASSERT_TRUE(engine.HasQueuedTheStop());
    ::kill(engine.child.pid(), SIGKILL);
    const absl::Status killed = FrozenProcess::KillParked(*process, kTimeout);
    ASSERT_TRUE(killed.ok()) << i << ": " << killed;
    EXPECT_TRUE(*process->HasExited());
  }
}

TEST(FreezerTest, TracedProcessIsNotTakenForOneThatGoesOn) {
  SharedValue<std::atomic<int>> is_traced;
  ChildProcess child([] {
    for (;;) ::pause();
  });
  ChildProcess tracer([&] {
    ::ptrace(PTRACE_SEIZE, child.pid(), nullptr, nullptr);
    *is_traced = 1;
    for (;;) ::pause();
  });
  ASSERT_TRUE(Eventually([&] { return *is_traced == 1; }));
  const auto process = ProcessHandle::Open(child.pid());
  EXPECT_EQ(FrozenProcess::UnparkAndResume(*process, absl::Milliseconds(50)).code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(FrozenProcess::KillParked(*process, absl::Milliseconds(50)).code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST(FreezerTest, KillParkedKillsOnlyWhatIsParked) {
  SharedValue<Parked> parked;
  ChildProcess child([&] { CountInFourThreads(*parked); });
  ASSERT_TRUE(Eventually([&] { return parked->ready == 1; }));
  const auto process = ProcessHandle::Open(child.pid());
  EXPECT_EQ(FrozenProcess::KillParked(*process, kTimeout).code(),
            absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(AllFourMove(*parked));
  ::kill(child.pid(), SIGSTOP);
  ASSERT_TRUE(Eventually([&] { return ReadStat(*process)->state == 'T'; }));
  const absl::Status killed = FrozenProcess::KillParked(*process, kTimeout);
  EXPECT_TRUE(killed.ok()) << killed;
  EXPECT_TRUE(*process->HasExited());
}

}  // namespace
}  // namespace predump::kernel
