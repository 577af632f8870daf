#include "src/kernel/restart.h"

#include <errno.h>
#include <sys/syscall.h>

#include "gtest/gtest.h"

namespace predump::kernel {
namespace {

user_regs_struct Stopped(uint64_t number, int64_t result) {
  user_regs_struct registers = {};
  registers.rip = 0x1002;
  registers.orig_rax = number;
  registers.rax = static_cast<uint64_t>(result);
  return registers;
}

constexpr uint64_t kNone = ~0ull;

TEST(RestartRegistersTest, RestartCodesMoveBackToTheInstruction) {
  // pause(2) is told -514 by any stop; read(2) may also be told EINTR by one.
  for (const long number : {SYS_read, SYS_pause}) {
    for (const int64_t code : {-512, -513, -514}) {
      for (const bool same_task : {true, false}) {
        const RestartPlan plan = RestartRegisters(Stopped(number, code), {.same_task = same_task});
        EXPECT_EQ(plan.registers.rax, static_cast<uint64_t>(number));
        EXPECT_EQ(plan.registers.rip, 0x1000u);
        EXPECT_EQ(plan.registers.orig_rax, kNone);
        EXPECT_TRUE(plan.repeats_call);
      }
    }
  }
}

TEST(RestartRegistersTest, RestartBlockIsUsedByTheSameTaskOnly) {
  const auto stopped = Stopped(SYS_poll, -516);
  EXPECT_EQ(RestartRegisters(stopped, {}).registers.rax,
            static_cast<uint64_t>(SYS_restart_syscall));
  EXPECT_EQ(RestartRegisters(stopped, {.same_task = false}).registers.rax,
            static_cast<uint64_t>(SYS_poll));
}

TEST(RestartRegistersTest, RemainingTimeOfPollIsPatchedRoundedUp) {
  auto stopped = Stopped(SYS_poll, -516);
  stopped.rdx = 1000;
  const RestartPlan plan =
      RestartRegisters(stopped, {.same_task = false, .remaining = absl::Microseconds(250'100)});
  EXPECT_EQ(plan.timeout, RestartPlan::Timeout::kMillisecondsInRegister);
  EXPECT_EQ(plan.registers.rdx, 251u);
  EXPECT_EQ(RestartRegisters(stopped, {.same_task = false}).registers.rdx, 1000u);
}

TEST(RestartRegistersTest, TimespecInMemoryIsNamed) {
  auto sleep = Stopped(SYS_nanosleep, -516);
  sleep.rdi = 0x7000;
  EXPECT_EQ(RestartRegisters(sleep, {.same_task = false}).timeout_address, 0x7000u);
  auto absolute = Stopped(SYS_clock_nanosleep, -516);
  absolute.rsi = 1;
  absolute.rdx = 0x7000;
  EXPECT_EQ(RestartRegisters(absolute, {.same_task = false}).timeout, RestartPlan::Timeout::kNone);
  auto futex = Stopped(SYS_futex, -516);
  futex.rsi = 128;  // FUTEX_WAIT_PRIVATE
  futex.r10 = 0x8000;
  EXPECT_EQ(RestartRegisters(futex, {.same_task = false}).timeout_address, 0x8000u);
  EXPECT_EQ(RestartRegisters(futex, {}).timeout, RestartPlan::Timeout::kNone);
}

TEST(RestartRegistersTest, EintrOfAStopIsRepeatedUnlessASignalWaits) {
  auto stopped = Stopped(SYS_epoll_wait, -EINTR);
  stopped.r10 = static_cast<uint64_t>(-1);
  const RestartPlan plan = RestartRegisters(stopped, {});
  EXPECT_TRUE(plan.repeats_call);
  EXPECT_EQ(plan.registers.r10, static_cast<uint64_t>(-1)) << "no timeout is none";
  const RestartPlan kept = RestartRegisters(stopped, {.unblocked_signal_pending = true});
  EXPECT_FALSE(kept.repeats_call);
  EXPECT_EQ(kept.registers.rax, static_cast<uint64_t>(-EINTR));
  EXPECT_EQ(kept.registers.rip, 0x1002u);
  EXPECT_EQ(kept.registers.orig_rax, kNone);
}

TEST(RestartRegistersTest, OtherResultsAndUserCodeAreLeftAlone) {
  EXPECT_FALSE(RestartRegisters(Stopped(SYS_close, -EINTR), {}).repeats_call);
  EXPECT_FALSE(RestartRegisters(Stopped(SYS_read, 12), {}).repeats_call);
  EXPECT_FALSE(RestartRegisters(Stopped(SYS_read, -EAGAIN), {}).repeats_call);
  const auto outside = Stopped(kNone, -512);
  EXPECT_FALSE(RestartRegisters(outside, {}).repeats_call);
  EXPECT_EQ(RestartRegisters(outside, {}).registers.rip, 0x1002u);
}

TEST(NativeRestartTest, OnlyEintrOfAStopBecomesRestartNoHandler) {
  const auto fixed = NativeRestartRegisters(Stopped(SYS_epoll_wait, -EINTR));
  ASSERT_TRUE(fixed.has_value());
  EXPECT_EQ(fixed->rax, static_cast<uint64_t>(-514));
  EXPECT_EQ(fixed->orig_rax, static_cast<uint64_t>(SYS_epoll_wait));
  EXPECT_EQ(fixed->rip, 0x1002u);
  EXPECT_FALSE(NativeRestartRegisters(Stopped(SYS_nanosleep, -516)).has_value());
  EXPECT_FALSE(NativeRestartRegisters(Stopped(SYS_close, -EINTR)).has_value());
  EXPECT_FALSE(NativeRestartRegisters(Stopped(kNone, -EINTR)).has_value());
}

TEST(RebuiltRestartRegistersTest, LeaveTheChoiceToTheKernel) {
  struct Case {
    long number;
    int64_t stopped_with;
    int64_t goes_on_with;
  };
  for (const Case& c :
       {Case{SYS_read, -512, -512}, Case{SYS_futex, -513, -513}, Case{SYS_pause, -514, -514},
        Case{SYS_nanosleep, -516, -514}, Case{SYS_epoll_wait, -EINTR, -514}}) {
    const user_regs_struct stopped = Stopped(c.number, c.stopped_with);
    const RestartPlan plan = RestartRegisters(stopped, {.same_task = false});
    const user_regs_struct registers =
        RebuiltRestartRegisters(plan.registers, static_cast<uint64_t>(c.number), c.stopped_with);
    EXPECT_EQ(registers.orig_rax, static_cast<uint64_t>(c.number));
    EXPECT_EQ(static_cast<int64_t>(registers.rax), c.goes_on_with);
    EXPECT_EQ(registers.rip, stopped.rip);
  }
}

TEST(RebuiltRestartRegistersTest, ACallThatIsOverStaysOver) {
  const RestartPlan plan = RestartRegisters(Stopped(SYS_epoll_wait, -EINTR),
                                            {.same_task = false, .unblocked_signal_pending = true});
  const user_regs_struct registers =
      RebuiltRestartRegisters(plan.registers, SYS_epoll_wait, -EINTR);
  EXPECT_EQ(static_cast<int64_t>(registers.rax), -EINTR);
  EXPECT_EQ(registers.orig_rax, kNone);
}

TEST(BelowRedZoneTest, LeavesTheRedZoneAloneAndIsAligned) {
  for (uint64_t stack_pointer = 0x7ffe00001000; stack_pointer < 0x7ffe00001020; ++stack_pointer) {
    const uint64_t place = BelowRedZone(stack_pointer, 16);
    EXPECT_EQ(place % 16, 0u);
    EXPECT_LE(place + 16, stack_pointer - 128);
    EXPECT_GT(place + 32, stack_pointer - 128);
  }
}

}  // namespace
}  // namespace predump::kernel
