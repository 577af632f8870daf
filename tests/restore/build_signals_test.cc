// Signals, timers and interrupted calls of a process that was built.
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <span>
#include <string>

#include "gtest/gtest.h"
#include "tests/restore/build_fixture.h"

namespace predump::restore {
namespace {

// Gives the state's process our own handler: the child was forked from here with the same code.
void SetHandler(int number, criu::task_core_entry& task) {
  struct {
    uint64_t handler, flags, restorer, mask;
  } kernel_action;
  struct sigaction set = {};
  set.sa_sigaction = Handler;
  set.sa_flags = SA_SIGINFO;
  struct sigaction before;
  ASSERT_EQ(::sigaction(number, &set, &before), 0);
  ASSERT_EQ(::syscall(SYS_rt_sigaction, number, nullptr, &kernel_action, 8), 0);
  ASSERT_EQ(::sigaction(number, &before, nullptr), 0);
  criu::sa_entry& action =
      *task.mutable_sigactions(number - 1 - (number > SIGKILL) - (number > SIGSTOP));
  action.set_sigaction(kernel_action.handler);
  action.set_flags(kernel_action.flags);
  action.set_restorer(kernel_action.restorer);
  action.set_mask(kernel_action.mask);
}

// A periodic timer whose signal is pending is armed again by the kernel as the signal is taken.
TEST_F(BuildTest, APeriodicAlarmThatIsPendingComesAgainAndAgain) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  criu::task_core_entry& task = *state_.mutable_threads(0)->mutable_core()->mutable_tc();
  ASSERT_NO_FATAL_FAILURE(SetHandler(SIGALRM, task));
  siginfo_t alarm = {};
  alarm.si_signo = SIGALRM;
  alarm.si_code = SI_KERNEL;
  task.mutable_signals_s()->add_signals()->set_siginfo(&alarm, sizeof alarm);
  task.mutable_timers()->mutable_real()->set_iusec(20'000);
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  const absl::Status released = Release();
  ASSERT_TRUE(released.ok()) << released;
  const absl::Time limit = absl::Now() + absl::Seconds(10);
  while (report_->signals[SIGALRM] < 4 && absl::Now() < limit) ::usleep(1000);
  EXPECT_GE(report_->signals[SIGALRM], 4);
}

std::string Queued(int number, int value) {
  siginfo_t signal = {};
  signal.si_signo = number;
  signal.si_code = SI_QUEUE;
  signal.si_value.sival_int = value;
  return std::string(reinterpret_cast<const char*>(&signal), sizeof(signal));
}

// setrlimit(2) may have gone below what was queued before.
TEST_F(BuildTest, PendingSignalsArriveWhateverTheLimitIsNow) {
  ASSERT_NO_FATAL_FAILURE(Prepare([](Report* report) {
    struct sigaction action = {};
    action.sa_sigaction = Handler;
    action.sa_flags = SA_SIGINFO;
    ::sigaction(SIGRTMIN + 3, &action, nullptr);
    Beat(report, 0);
  }));
  criu::core_entry& core = *state_.mutable_threads(0)->mutable_core();
  SetHandler(SIGRTMIN + 3, *core.mutable_tc());
  core.mutable_tc()->mutable_rlimits()->mutable_rlimits(RLIMIT_SIGPENDING)->set_cur(0);
  for (const int value : {11, 12}) {
    core.mutable_thread_core()->mutable_signals_p()->add_signals()->set_siginfo(
        Queued(SIGRTMIN + 3, value));
  }
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  const absl::Status released = Release();
  ASSERT_TRUE(released.ok()) << released;
  const absl::Time limit = absl::Now() + absl::Seconds(10);
  while (report_->signals[SIGRTMIN + 3] < 2 && absl::Now() < limit) ::usleep(1000);
  EXPECT_EQ(report_->signals[SIGRTMIN + 3], 2);
  EXPECT_TRUE(Beats(0));
}

TEST_F(BuildTest, PendingLateAndHandledSignalsArriveWithTheirValues) {
  ASSERT_NO_FATAL_FAILURE(Prepare([](Report* report) {
    struct sigaction action = {};
    action.sa_sigaction = Handler;
    action.sa_flags = SA_SIGINFO;
    ::sigaction(SIGUSR1, &action, nullptr);
    ::sigaction(SIGRTMIN + 3, &action, nullptr);
    ::sigaction(SIGALRM, &action, nullptr);
    Beat(report, 0);
  }));
  criu::task_core_entry& task = *state_.mutable_threads(0)->mutable_core()->mutable_tc();
  for (const int number : {SIGUSR1, SIGRTMIN + 3, SIGALRM}) SetHandler(number, task);
  task.mutable_signals_s()->add_signals()->set_siginfo(Queued(SIGRTMIN + 3, 11));
  task.mutable_signals_s()->add_signals()->set_siginfo(Queued(SIGRTMIN + 3, 12));
  state_.mutable_threads(0)
      ->mutable_core()
      ->mutable_thread_core()
      ->mutable_signals_p()
      ->add_signals()
      ->set_siginfo(Queued(SIGUSR1, 13));
  task.mutable_timers()->mutable_real()->set_vusec(50'000);
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  proto::LateSignal late;
  late.set_siginfo(Queued(SIGRTMIN + 3, 99));
  const absl::Status queued = built_->QueueLateSignals(std::span(&late, 1));
  ASSERT_TRUE(queued.ok()) << queued;
  EXPECT_EQ(report_->signals[SIGUSR1], 0) << "a signal was delivered before the release";
  const absl::Status released = Release();
  ASSERT_TRUE(released.ok()) << released;
  const absl::Time limit = absl::Now() + absl::Seconds(10);
  while ((report_->signals[SIGALRM] == 0 || report_->signals[SIGRTMIN + 3] < 3) &&
         absl::Now() < limit) {
    ::usleep(1000);
  }
  EXPECT_EQ(report_->signals[SIGRTMIN + 3], 3);
  EXPECT_EQ(report_->signals[SIGUSR1], 1);
  EXPECT_EQ(report_->signals[SIGALRM], 1);
  EXPECT_TRUE(Beats(0));
  EXPECT_EQ(report_->wrong, 0u);
}

// A handler that runs ends the wait. Were the call simply repeated, it would wait for a signal that
// has been.
TEST_F(BuildTest, ASignalThatCameTooLateEndsTheCallItFindsTheThreadIn) {
  ASSERT_NO_FATAL_FAILURE(Prepare([](Report* report) {
    report->beats[0] = 1;
    sigset_t none;
    ::sigemptyset(&none);
    const int result = ::sigsuspend(&none);
    report->wrong = result == -1 && errno == EINTR ? 0 : 1;
    report->beats[1] = 1;
    Beat(report, 0);
  }));
  ASSERT_TRUE(state_.threads(0).extra().has_interrupted_call());
  criu::task_core_entry& task = *state_.mutable_threads(0)->mutable_core()->mutable_tc();
  struct sigaction set = {};
  set.sa_sigaction = Handler;
  set.sa_flags = SA_SIGINFO;
  struct sigaction before;
  struct {
    uint64_t handler, flags, restorer, mask;
  } kernel_action;
  ASSERT_EQ(::sigaction(SIGUSR1, &set, &before), 0);
  ASSERT_EQ(::syscall(SYS_rt_sigaction, SIGUSR1, nullptr, &kernel_action, 8), 0);
  ASSERT_EQ(::sigaction(SIGUSR1, &before, nullptr), 0);
  criu::sa_entry& action = *task.mutable_sigactions(SIGUSR1 - 2);
  action.set_sigaction(kernel_action.handler);
  action.set_flags(kernel_action.flags);
  action.set_restorer(kernel_action.restorer);
  ASSERT_TRUE(Build().ok());
  siginfo_t signal = {};
  signal.si_signo = SIGUSR1;
  signal.si_code = SI_QUEUE;
  proto::LateSignal late;
  late.set_siginfo(&signal, sizeof signal);
  ASSERT_TRUE(built_->QueueLateSignals(std::span(&late, 1)).ok());
  ASSERT_TRUE(Release().ok());
  const absl::Time limit = absl::Now() + absl::Seconds(5);
  while (report_->beats[1] == 0 && absl::Now() < limit) ::usleep(1000);
  EXPECT_EQ(report_->signals[SIGUSR1], 1);
  EXPECT_EQ(report_->beats[1], 1u) << "the wait goes on";
  EXPECT_EQ(report_->wrong, 0u);
}

TEST_F(BuildTest, ASleepGoesOnWithTheTimeThatIsLeft) {
  ASSERT_NO_FATAL_FAILURE(Prepare([](Report* report) {
    static const struct timespec hour = {3600, 0};
    report->beats[0] = 1;
    const long result = ::syscall(SYS_nanosleep, &hour, nullptr);
    // What was asked for stays what it was.
    report->wrong = result == 0 && hour.tv_sec == 3600 && hour.tv_nsec == 0 ? 0 : 1;
    report->beats[1] = 1;
    Beat(report, 0);
  }));
  ASSERT_TRUE(state_.threads(0).extra().has_interrupted_call());
  state_.mutable_threads(0)->mutable_extra()->mutable_interrupted_call()->set_remaining_ns(
      300'000'000);
  ASSERT_TRUE(Build().ok());
  const absl::Time released = absl::Now();
  ASSERT_TRUE(Release().ok());
  while (report_->beats[1] == 0 && absl::Now() < released + absl::Seconds(5)) ::usleep(1000);
  EXPECT_EQ(report_->beats[1], 1u) << "it sleeps for the whole time";
  EXPECT_GT(absl::Now() - released, absl::Milliseconds(100));
  EXPECT_EQ(report_->wrong, 0u);
}

}  // namespace
}  // namespace predump::restore
