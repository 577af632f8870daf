// Calls interrupted by a freeze: their deadlines, their masks, and how long they had been asleep.
#include <gtest/gtest.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <functional>

#include "src/kernel/bpf/task_capture.h"
#include "tests/kernel/bpf/test_child.h"

namespace predump::kernel {
namespace {

using testing::Shared;
using testing::TestChild;

constexpr uint64_t kSecond = 1'000'000'000;
constexpr uint64_t kTimeout = 1000 * kSecond;
constexpr int64_t kRestartBlock = -516;

uint64_t Now(clockid_t clock) {
  timespec now = {};
  clock_gettime(clock, &now);
  return static_cast<uint64_t>(now.tv_sec) * kSecond + static_cast<uint64_t>(now.tv_nsec);
}

struct Facts {
  std::atomic<uint64_t> started;
  uint32_t futex;
};

// A thread seized and stopped, which runs on when this goes away.
class Freeze {
 public:
  explicit Freeze(pid_t pid) : pid_(pid) {
    EXPECT_EQ(ptrace(PTRACE_SEIZE, pid_, nullptr, nullptr), 0);
    EXPECT_EQ(ptrace(PTRACE_INTERRUPT, pid_, nullptr, nullptr), 0);
    int status = 0;
    EXPECT_EQ(waitpid(pid_, &status, __WALL), pid_);
    EXPECT_TRUE(WIFSTOPPED(status));
  }
  Freeze(const Freeze&) = delete;
  Freeze& operator=(const Freeze&) = delete;
  ~Freeze() { ptrace(PTRACE_DETACH, pid_, nullptr, nullptr); }

  int64_t Result() const {
    user_regs_struct registers = {};
    EXPECT_EQ(ptrace(PTRACE_GETREGS, pid_, nullptr, &registers), 0);
    return static_cast<int64_t>(registers.rax);
  }

 private:
  pid_t pid_;
};

struct Case {
  const char* name;
  long nr;
  RestartKind kind;
  std::function<void(Facts&)> call;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

const timespec kThousandSeconds = {1000, 0};

const Case kCases[] = {
    {"nanosleep", SYS_nanosleep, RestartKind::kNanosleep,
     [](Facts&) { syscall(SYS_nanosleep, &kThousandSeconds, nullptr); }},
    {"clock_nanosleep", SYS_clock_nanosleep, RestartKind::kNanosleep,
     [](Facts&) { syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &kThousandSeconds, nullptr); }},
    {"poll", SYS_poll, RestartKind::kPoll,
     [](Facts&) {
       pollfd nothing = {-1, POLLIN, 0};
       syscall(SYS_poll, &nothing, 1, 1000 * 1000);
     }},
    {"futex", SYS_futex, RestartKind::kFutex,
     [](Facts& facts) {
       syscall(SYS_futex, &facts.futex, FUTEX_WAIT, 0, &kThousandSeconds, nullptr, 0);
     }},
};

class RestartBlockTest : public ::testing::TestWithParam<Case> {};

TEST_P(RestartBlockTest, DeadlineOfAnInterruptedCallIsAbsolute) {
  Shared<Facts> facts;
  TestChild child([&] {
    facts->started = Now(CLOCK_MONOTONIC);
    GetParam().call(*facts);
  });
  ASSERT_TRUE(TestChild::WaitUntilInside(child.pid(), GetParam().nr));
  const uint64_t asleep = Now(CLOCK_MONOTONIC);
  auto capture = TaskCapture::Create(child.pid());
  ASSERT_TRUE(capture.ok()) << capture.status();
  Freeze freeze(child.pid());
  ASSERT_EQ(freeze.Result(), kRestartBlock);
  const auto snapshot = capture->Read();
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  const RestartBlock& block = snapshot->threads.at(0).restart;
  EXPECT_EQ(RestartKindOf(block), GetParam().kind) << block.function;
  const auto deadline = RestartDeadlineOf(block);
  ASSERT_TRUE(deadline.has_value());
  // nanosleep(2) counts on CLOCK_MONOTONIC, whatever its page says of CLOCK_REALTIME.
  EXPECT_EQ(deadline->clock, CLOCK_MONOTONIC);
  EXPECT_GE(deadline->expires_ns, facts->started + kTimeout);
  // Sleeps carry the thread's timer slack in their deadline.
  EXPECT_LE(deadline->expires_ns, asleep + kTimeout + snapshot->threads.at(0).timer_slack);
}

INSTANTIATE_TEST_SUITE_P(Calls, RestartBlockTest, ::testing::ValuesIn(kCases),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(RestartBlock, CallsWithoutTimeoutHaveNoDeadline) {
  Shared<Facts> facts;
  TestChild child([&] {
    pollfd nothing = {-1, POLLIN, 0};
    syscall(SYS_poll, &nothing, 1, -1);
  });
  ASSERT_TRUE(TestChild::WaitUntilInside(child.pid(), SYS_poll));
  auto capture = TaskCapture::Create(child.pid());
  ASSERT_TRUE(capture.ok()) << capture.status();
  Freeze freeze(child.pid());
  const auto snapshot = capture->Read();
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  EXPECT_EQ(RestartKindOf(snapshot->threads.at(0).restart), RestartKind::kPoll);
  EXPECT_FALSE(RestartDeadlineOf(snapshot->threads.at(0).restart).has_value());
}

TEST(RestartBlock, ThreadThatWasNeverInterruptedHasNone) {
  TestChild child([] { syscall(SYS_pause); });
  ASSERT_TRUE(TestChild::WaitUntilInside(child.pid(), SYS_pause));
  auto capture = TaskCapture::Create(child.pid());
  ASSERT_TRUE(capture.ok()) << capture.status();
  const auto snapshot = capture->Read();
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  EXPECT_EQ(RestartKindOf(snapshot->threads.at(0).restart), RestartKind::kNone);
}

TEST(OffCpuTime, IsTheTimeSinceTheThreadFellAsleep) {
  Shared<Facts> facts;
  TestChild child([&] {
    facts->started = Now(CLOCK_MONOTONIC);
    syscall(SYS_nanosleep, &kThousandSeconds, nullptr);
  });
  auto capture = TaskCapture::Create(child.pid());
  ASSERT_TRUE(capture.ok()) << capture.status();
  ASSERT_TRUE(TestChild::WaitUntilInside(child.pid(), SYS_nanosleep));
  const uint64_t asleep_at_the_latest = Now(CLOCK_MONOTONIC);
  for (const uint64_t wait : {kSecond / 100, kSecond / 2}) {
    ASSERT_TRUE(
        testing::Eventually([&] { return Now(CLOCK_MONOTONIC) > asleep_at_the_latest + wait; }));
    const uint64_t before = Now(CLOCK_MONOTONIC);
    const auto snapshot = capture->Read();
    const uint64_t after = Now(CLOCK_MONOTONIC);
    ASSERT_TRUE(snapshot.ok()) << snapshot.status();
    const auto off_cpu = OffCpuNanoseconds(snapshot->threads.at(0));
    ASSERT_TRUE(off_cpu.has_value());
    // Run queue clocks may stand still for a tick (10 ms at most).
    EXPECT_GE(*off_cpu + kSecond / 100, before - asleep_at_the_latest);
    EXPECT_LE(*off_cpu, after - facts->started + kSecond / 100);
  }
}

TEST(SignalMasks, TemporaryMaskOfPpollIsToldFromTheSavedOne) {
  TestChild child([] {
    sigset_t own;
    sigemptyset(&own);
    sigaddset(&own, SIGUSR1);
    sigprocmask(SIG_SETMASK, &own, nullptr);
    sigset_t temporary;
    sigemptyset(&temporary);
    sigaddset(&temporary, SIGUSR2);
    syscall(SYS_ppoll, nullptr, 0, nullptr, &temporary, 8);
  });
  ASSERT_TRUE(TestChild::WaitUntilInside(child.pid(), SYS_ppoll));
  auto capture = TaskCapture::Create(child.pid());
  ASSERT_TRUE(capture.ok()) << capture.status();
  const auto snapshot = capture->Read();
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  const ThreadRecord& thread = snapshot->threads.at(0);
  EXPECT_EQ(thread.restore_sigmask, 1u);
  EXPECT_EQ(thread.blocked, 1ull << (SIGUSR2 - 1));
  EXPECT_EQ(thread.saved_mask, 1ull << (SIGUSR1 - 1));
}

TEST(SignalMasks, SigtimedwaitKeepsTheRealMaskApart) {
  TestChild child([] {
    sigset_t own;
    sigemptyset(&own);
    sigaddset(&own, SIGUSR1);
    sigaddset(&own, SIGUSR2);
    sigprocmask(SIG_SETMASK, &own, nullptr);
    sigset_t wanted;
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGUSR2);
    syscall(SYS_rt_sigtimedwait, &wanted, nullptr, &kThousandSeconds, 8);
  });
  ASSERT_TRUE(TestChild::WaitUntilInside(child.pid(), SYS_rt_sigtimedwait));
  auto capture = TaskCapture::Create(child.pid());
  ASSERT_TRUE(capture.ok()) << capture.status();
  const auto snapshot = capture->Read();
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  const ThreadRecord& thread = snapshot->threads.at(0);
  EXPECT_EQ(thread.blocked, 1ull << (SIGUSR1 - 1));
  EXPECT_EQ(thread.real_blocked, (1ull << (SIGUSR1 - 1)) | (1ull << (SIGUSR2 - 1)));
}

}  // namespace
}  // namespace predump::kernel
