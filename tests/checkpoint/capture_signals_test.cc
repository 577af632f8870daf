// Signals that are pending when a process is captured, or come while it stands still.
#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/kernel/procfs_task.h"
#include "tests/checkpoint/forked_process.h"
#include "tests/kernel/child_process.h"

namespace predump::checkpoint {
namespace {

using ::predump::checkpoint::testing::CaptureOnce;
using ::predump::checkpoint::testing::ForkedProcess;
using ::predump::checkpoint::testing::Require;

TEST(CaptureTask, SignalsThatComeAfterCaptureAreTold) {
  const ForkedProcess child([] {
    sigset_t all;
    sigfillset(&all);
    ::sigprocmask(SIG_SETMASK, &all, nullptr);
    ::raise(SIGUSR1);
    struct itimerval timer = {.it_interval = {0, 0}, .it_value = {0, 200'000}};
    Require(::setitimer(ITIMER_REAL, &timer, nullptr) == 0, "setitimer");
  });
  auto capturer = Capturer::Create(child.handle(), {});
  ASSERT_TRUE(capturer.ok()) << capturer.status();
  auto frozen = kernel::FrozenProcess::Freeze(child.handle(), absl::Seconds(5));
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  const auto vmas = pagemap::VmaList::Read(child.handle(), true);
  ASSERT_TRUE(vmas.ok());
  const auto state = capturer->Capture(*frozen, *vmas);
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_THAT(*capturer->SignalsSince(*frozen), ::testing::IsEmpty());

  ::kill(child.pid(), SIGTERM);
  ::syscall(SYS_tgkill, child.pid(), child.pid(), SIGHUP);
  // The alarm goes off while frozen: it is the captured timer's, which goes off at the target.
  ASSERT_TRUE(kernel::Eventually([&] {
    const auto status = kernel::ReadStatus(child.handle());
    return status.ok() && (status->pending_process & (1ull << (SIGALRM - 1))) != 0;
  }));
  const auto late = capturer->SignalsSince(*frozen);
  ASSERT_TRUE(late.ok()) << late.status();
  ASSERT_EQ(late->size(), 2u);
  EXPECT_FALSE((*late)[0].has_tid());
  EXPECT_EQ((*late)[1].tid(), static_cast<uint32_t>(child.pid()));
}

TEST(CaptureTask, APeriodicAlarmThatIsPendingKeepsItsInterval) {
  const ForkedProcess child([] {
    sigset_t all;
    sigfillset(&all);
    ::sigprocmask(SIG_SETMASK, &all, nullptr);
    struct itimerval timer = {.it_interval = {3, 0}, .it_value = {0, 1}};
    Require(::setitimer(ITIMER_REAL, &timer, nullptr) == 0, "setitimer");
    sigset_t pending;
    do ::sigpending(&pending);
    while (!sigismember(&pending, SIGALRM));
  });
  for (const bool use_bpf : {true, false}) {
    CaptureOptions options;
    options.use_bpf = use_bpf;
    const auto state = CaptureOnce(child.handle(), options);
    ASSERT_TRUE(state.ok()) << state.status();
    const criu::itimer_entry& timer = state->threads(0).core().tc().timers().real();
    EXPECT_EQ(timer.vsec() + timer.vusec(), 0u);
    EXPECT_EQ(timer.isec(), 3u);
    EXPECT_EQ(state->threads(0).core().tc().signals_s().signals_size(), 1);
  }
}

}  // namespace
}  // namespace predump::checkpoint
