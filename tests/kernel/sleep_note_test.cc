#include "src/kernel/sleep_note.h"

#include <sched.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <limits>

#include "gtest/gtest.h"
#include "src/base/errors.h"
#include "src/kernel/ptrace.h"
#include "tests/kernel/child_process.h"

namespace predump::kernel {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(30);
constexpr int kHoldMs = 20;

absl::StatusOr<int> PassOn(const WaitEvent& event) {
  return event.kind == WaitEvent::Kind::kSignalStop ? event.code : 0;
}

// Runs `tracee` to the end of its program, holding it up before its system call number `call`.
// False: there were not that many.
absl::StatusOr<bool> HoldUp(Tracee& tracee, int call) {
  for (int calls = 0;; ++calls) {
    PREDUMP_RETURN_IF_ERROR(tracee.RunToSyscallStop(kTimeout, PassOn));  // entry
    PREDUMP_ASSIGN_OR_RETURN(const user_regs_struct entry, tracee.GetRegisters());
    if (entry.orig_rax == SYS_exit_group) return calls > call;
    if (calls == call) SleepMs(kHoldMs);
    PREDUMP_RETURN_IF_ERROR(tracee.RunToSyscallStop(kTimeout, PassOn));  // exit
  }
}

bool RunsHeldUp(const std::function<void()>& body, int call) {
  SharedValue<std::atomic<bool>> watched;
  ChildProcess child([&] {
    while (!*watched) {
    }
    body();
  });
  auto tracee = Tracee::Seize(child.pid(), PTRACE_O_TRACESYSGOOD);
  EXPECT_TRUE(tracee.ok()) << tracee.status();
  if (!tracee.ok()) return false;
  absl::Status status = tracee->Interrupt();
  if (status.ok()) status = tracee->WaitForEventStop(kTimeout).status();
  *watched = true;
  const auto held_up = status.ok() ? HoldUp(*tracee, call) : status;
  EXPECT_TRUE(held_up.ok()) << held_up.status();
  child.Kill();
  tracee->Abandon();
  return held_up.ok() && *held_up;
}

// An offset that is too small makes sleeps look longer than they were: calls repeated for the rest
// of them would end early. Too large they end late, which calls may.
TEST(SchedulerClocksTest, AnOffsetIsNotTooSmallWhereverTheMeasuringIsHeldUp) {
  const int cpu = ::sched_getcpu();
  ASSERT_GE(cpu, 0);
  if (!SchedulerClocks().OffsetOf(cpu).has_value()) GTEST_SKIP() << "no CONFIG_SCHED_DEBUG";
  // That clock never gains on CLOCK_MONOTONIC: the smallest offset is the truth of that time.
  int64_t smallest = std::numeric_limits<int64_t>::max();
  for (int i = 0; i < 200; ++i) {
    const auto offset = SchedulerClocks().OffsetOf(cpu);
    ASSERT_TRUE(offset.has_value());
    smallest = std::min(smallest, *offset);
  }
  SharedValue<std::atomic<int64_t>> measured;
  const auto measure = [&] { *measured = SchedulerClocks().OffsetOf(cpu).value_or(0); };
  int call = 0;
  for (; RunsHeldUp(measure, call); ++call) {
    // A tick in the middle is worth some microseconds.
    EXPECT_GE(*measured, smallest - 1'000'000) << "held up at call " << call;
  }
  EXPECT_GT(call, 3);
}

}  // namespace
}  // namespace predump::kernel
