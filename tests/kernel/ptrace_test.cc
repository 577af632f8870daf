// One attachment, and those to threads that cannot be stopped.
#include "src/kernel/ptrace.h"

#include <sys/epoll.h>
#include <sys/ptrace.h>

#include <atomic>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/kernel/procfs_task.h"
#include "src/kernel/unstopped_threads.h"
#include "tests/kernel/child_process.h"
#include "tests/kernel/vfork_parent.h"

namespace predump::kernel {
namespace {

void PauseForEver() {
  for (;;) ::pause();
}

TEST(TraceeTest, RegistersMasksAndPendingSignals) {
  ChildProcess child(PauseForEver);
  auto tracee = Tracee::Seize(child.pid(), PTRACE_O_TRACESYSGOOD);
  ASSERT_TRUE(tracee.ok()) << tracee.status();
  ASSERT_TRUE(tracee->Interrupt().ok());
  const auto stop = tracee->WaitForEventStop(absl::Seconds(2));
  ASSERT_TRUE(stop.ok()) << stop.status();
  EXPECT_FALSE(stop->IsGroupStop());
  auto registers = tracee->GetRegisters();
  ASSERT_TRUE(registers.ok());
  EXPECT_TRUE(tracee->SetRegisters(*registers).ok());
  const auto xstate = tracee->GetXstate();
  ASSERT_TRUE(xstate.ok()) << xstate.status();
  EXPECT_GE(xstate->size(), 512u + 64u);
  EXPECT_TRUE(tracee->SetXstate(*xstate).ok());
  const uint64_t mask = 1ull << (SIGUSR1 - 1);
  ASSERT_TRUE(tracee->SetSignalMask(mask).ok());
  EXPECT_EQ(*tracee->GetSignalMask(), mask);
  ::kill(child.pid(), SIGUSR1);
  const auto pending = tracee->PeekPendingSignals(PendingQueue::kProcess);
  ASSERT_TRUE(pending.ok()) << pending.status();
  ASSERT_EQ(pending->size(), 1u);
  EXPECT_EQ((*pending)[0].si_signo, SIGUSR1);
  EXPECT_EQ((*pending)[0].si_pid, ::getpid());
  EXPECT_TRUE(tracee->PeekPendingSignals(PendingQueue::kThread)->empty());
  EXPECT_TRUE(tracee->GetRseqConfiguration().ok());
  EXPECT_FALSE(*tracee->UsesSyscallUserDispatch());
}

TEST(TraceeTest, ExitedThreadIsTargetExited) {
  ChildProcess child(PauseForEver);
  auto tracee = Tracee::Seize(child.pid(), 0);
  ASSERT_TRUE(tracee.ok());
  ::kill(child.pid(), SIGKILL);
  EXPECT_TRUE(base::IsTargetExited(tracee->WaitForStop(absl::Seconds(5)).status()));
  EXPECT_TRUE(base::IsTargetExited(Tracee::Seize(child.pid(), 0).status()));
}

TEST(TraceeTest, DestructorLetsARunningThreadGo) {
  SharedValue<std::atomic<long>> steps;
  ChildProcess child([&] {
    for (;;) ++*steps;
  });
  ASSERT_TRUE(Eventually([&] { return *steps > 0; }));
  {
    const auto tracee = Tracee::Seize(child.pid(), 0);
    ASSERT_TRUE(tracee.ok());
  }
  const auto process = ProcessHandle::Open(child.pid());
  EXPECT_EQ(ReadStatus(*process)->tracer_pid, 0);
  const long before = *steps;
  EXPECT_TRUE(Eventually([&] { return *steps > before; }));
}

TEST(TraceeTest, DetachStopsARunningThreadFirstAndItsCallGoesOn) {
  SharedValue<std::atomic<int>> result;
  ChildProcess child([&] {
    struct epoll_event event;
    *result = ::epoll_wait(::epoll_create1(0), &event, 1, 60'000) + 2;
  });
  const auto process = ProcessHandle::Open(child.pid());
  ASSERT_TRUE(Eventually([&] { return ReadStat(*process)->state == 'S'; }));
  auto tracee = Tracee::Seize(child.pid(), 0);
  ASSERT_TRUE(tracee.ok());
  const absl::Status detached = tracee->Detach();
  EXPECT_TRUE(detached.ok()) << detached;
  EXPECT_EQ(tracee->tid(), 0);
  EXPECT_EQ(ReadStatus(*process)->tracer_pid, 0);
  ASSERT_TRUE(Eventually([&] { return ReadStat(*process)->state == 'S'; }));
  EXPECT_EQ(*result, 0) << "epoll_wait returned";
}

// A zombie that nobody but its tracer can wait for would hide its end from its parent.
TEST(TraceeTest, DetachWaitsForAThreadThatWasKilledInItsStop) {
  ChildProcess child(PauseForEver);
  auto tracee = Tracee::Seize(child.pid(), 0);
  ASSERT_TRUE(tracee.ok() && tracee->Interrupt().ok());
  ASSERT_TRUE(tracee->WaitForEventStop(absl::Seconds(5)).ok());
  ::kill(child.pid(), SIGKILL);
  EXPECT_TRUE(base::IsTargetExited(tracee->Detach()));
  EXPECT_EQ(tracee->tid(), 0);
  EXPECT_EQ(::kill(child.pid(), 0), -1) << "its zombie is left";
}

TEST(TraceeTest, DetachKeepsAThreadThatCannotBeStopped) {
  const VforkParent parent;
  auto tracee = Tracee::Seize(parent.pid(), 0);
  ASSERT_TRUE(tracee.ok());
  EXPECT_TRUE(absl::IsDeadlineExceeded(tracee->Detach(0, absl::Milliseconds(20))));
  EXPECT_EQ(tracee->tid(), parent.pid());
  parent.EndWait();
  EXPECT_TRUE(tracee->Detach().ok());
  EXPECT_TRUE(parent.RunsOn());
}

TEST(UnstoppedThreadsTest, AreLetGoOfWhenTheyComeBack) {
  const VforkParent stuck;
  const VforkParent others[2];
  ChildProcess killed(PauseForEver);
  EXPECT_TRUE(WaitsUninterruptibly(stuck.process(), stuck.pid()));
  EXPECT_THAT(
      std::string(DidNotStop(stuck.process(), stuck.pid(), absl::Milliseconds(7)).message()),
      testing::HasSubstr("did not stop within 7ms: it waits in "));
  UnstoppedThreads threads;
  for (const pid_t tid : {stuck.pid(), others[0].pid(), others[1].pid(), killed.pid()}) {
    auto tracee = Tracee::Seize(tid, 0);
    ASSERT_TRUE(tracee.ok() && tracee->Interrupt().ok());
    threads.Add(*std::move(tracee));
  }
  ::kill(killed.pid(), SIGKILL);
  others[1].EndWait();
  ASSERT_TRUE(Eventually([&] { return threads.LetGoOfStopped().ok() && others[1].RunsOn(); }));
  others[0].EndWait();
  EXPECT_EQ(threads.LetGoOfAll(base::MonotonicNanoseconds() + 50'000'000).code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(threads.first(), stuck.pid());
  EXPECT_TRUE(others[0].RunsOn());
  EXPECT_FALSE(stuck.RunsOn());
  const absl::Duration stopped = threads.stopped();
  EXPECT_GT(stopped, absl::ZeroDuration());
  stuck.EndWait();
  EXPECT_TRUE(threads.LetGoOfAll(base::MonotonicNanoseconds() + 10'000'000'000).ok());
  EXPECT_TRUE(threads.empty());
  EXPECT_TRUE(stuck.RunsOn());
  EXPECT_GT(threads.stopped(), stopped);
}

}  // namespace
}  // namespace predump::kernel
