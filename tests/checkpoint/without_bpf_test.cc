// A capture without BPF tells the same as one with it.
#include <fcntl.h>
#include <google/protobuf/util/message_differencer.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/base/units.h"
#include "src/images/state_validation.h"
#include "src/kernel/setup_injection.h"
#include "tests/checkpoint/forked_process.h"
#include "tests/support/proc_snapshot.h"

namespace predump::checkpoint {
namespace {

using ::predump::checkpoint::testing::CaptureOnce;
using ::predump::checkpoint::testing::ForkedProcess;
using ::predump::checkpoint::testing::Require;

constexpr CaptureOptions kWithBpf = {.use_bpf = true};
constexpr CaptureOptions kWithoutBpf = {.use_bpf = false};

proto::ProcessState Captured(const ForkedProcess& process, const CaptureOptions& options) {
  auto state = CaptureOnce(process.handle(), options);
  EXPECT_TRUE(state.ok()) << state.status();
  if (!state.ok()) return {};
  const absl::Status valid = images::ValidateState(*state, images::StateKind::kFull);
  EXPECT_TRUE(valid.ok()) << valid;
  return *std::move(state);
}

criu::task_core_entry& Task(proto::ProcessState& state) {
  return *state.mutable_threads(0)->mutable_core()->mutable_tc();
}

int64_t Nanoseconds(uint64_t seconds, uint64_t microseconds) {
  return static_cast<int64_t>(seconds) * 1'000'000'000 + static_cast<int64_t>(microseconds) * 1'000;
}

constexpr int64_t kTolerance = 500'000'000;  // between two captures, in nanoseconds

// Times that went on between two captures are compared roughly and then taken out.
void ExpectSame(proto::ProcessState with, proto::ProcessState without) {
  ASSERT_EQ(with.threads_size(), without.threads_size());
  const auto compare_timer = [](const criu::itimer_entry& a, const criu::itimer_entry& b) {
    EXPECT_EQ(a.isec(), b.isec());
    EXPECT_EQ(a.iusec(), b.iusec());
    EXPECT_LE(std::abs(Nanoseconds(a.vsec(), a.vusec()) - Nanoseconds(b.vsec(), b.vusec())),
              kTolerance);
  };
  compare_timer(Task(with).timers().real(), Task(without).timers().real());
  compare_timer(Task(with).timers().virt(), Task(without).timers().virt());
  compare_timer(Task(with).timers().prof(), Task(without).timers().prof());
  for (int i = 0; i < with.threads_size(); ++i) {
    proto::ThreadExtra& a = *with.mutable_threads(i)->mutable_extra();
    proto::ThreadExtra& b = *without.mutable_threads(i)->mutable_extra();
    if (!a.has_interrupted_call() || !b.has_interrupted_call()) continue;
    EXPECT_LE(std::abs(a.interrupted_call().remaining_ns() - b.interrupted_call().remaining_ns()),
              kTolerance);
    EXPECT_EQ(a.interrupted_call().has_remaining_ns(), b.interrupted_call().has_remaining_ns());
    a.mutable_interrupted_call()->clear_remaining_ns();
    b.mutable_interrupted_call()->clear_remaining_ns();
  }
  for (proto::ProcessState* state : {&with, &without}) {
    state->clear_timens();
    state->mutable_extra()->clear_freeze_monotonic_ns();
    state->mutable_extra()->clear_freeze_boottime_ns();
    Task(*state).clear_timers();
    // The kernel notes for the process accounting that a privilege was used (PF_SUPERPRIV), be it
    // by a mapping of ours.
    Task(*state).set_flags(Task(*state).flags() & ~uint32_t{0x100});
  }
  std::string differences;
  google::protobuf::util::MessageDifferencer differencer;
  differencer.ReportDifferencesToString(&differences);
  EXPECT_TRUE(differencer.Compare(with, without)) << differences;
}

void Handler(int) {}

void SetEverything() {
  static char stack_memory[65536];
  struct sigaction action = {};
  action.sa_handler = Handler;
  action.sa_flags = SA_RESTART | SA_ONSTACK;
  sigaddset(&action.sa_mask, SIGHUP);
  Require(::sigaction(SIGUSR1, &action, nullptr) == 0, "sigaction");
  action.sa_handler = SIG_DFL;
  action.sa_flags = SA_NOCLDWAIT;
  Require(::sigaction(SIGCHLD, &action, nullptr) == 0, "sigaction");
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGRTMAX, Handler);
  const stack_t stack = {.ss_sp = stack_memory, .ss_flags = 0, .ss_size = sizeof stack_memory};
  Require(::sigaltstack(&stack, nullptr) == 0, "sigaltstack");
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGUSR2);
  sigaddset(&mask, SIGRTMIN + 1);
  Require(::sigprocmask(SIG_BLOCK, &mask, nullptr) == 0, "sigprocmask");
  ::raise(SIGUSR2);
  Require(::sigqueue(::getpid(), SIGRTMIN + 1, {.sival_int = 4}) == 0, "sigqueue");
  struct itimerval timer = {.it_interval = {2, 3}, .it_value = {1000, 0}};
  Require(::setitimer(ITIMER_REAL, &timer, nullptr) == 0, "setitimer");
  timer = {.it_interval = {0, 0}, .it_value = {500, 0}};
  Require(::setitimer(ITIMER_PROF, &timer, nullptr) == 0, "setitimer");
  ::umask(027);
  Require(::prctl(PR_SET_CHILD_SUBREAPER, 1) == 0, "PR_SET_CHILD_SUBREAPER");
  Require(::prctl(PR_SET_PDEATHSIG, SIGUSR2) == 0, "PR_SET_PDEATHSIG");
  Require(::prctl(PR_SET_TIMERSLACK, 12345) == 0, "PR_SET_TIMERSLACK");
  Require(::prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0, "PR_SET_THP_DISABLE");
  Require(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "PR_SET_NO_NEW_PRIVS");
  Require(::prctl(PR_SET_KEEPCAPS, 1) == 0, "PR_SET_KEEPCAPS");
  Require(::prctl(PR_SET_DUMPABLE, 0) == 0, "PR_SET_DUMPABLE");
  Require(::setpriority(PRIO_PROCESS, 0, 7) == 0, "setpriority");
  testing::SetTimeSlice(5'000'000);
  Require(::syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 3) == 0, "ioprio_set");
  Require(::syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0,
          "membarrier");
  Require(::sbrk(3 * 4096) != reinterpret_cast<void*>(-1), "sbrk");
  const struct rlimit limit = {.rlim_cur = 100, .rlim_max = 4000};
  Require(::setrlimit(RLIMIT_NOFILE, &limit) == 0, "setrlimit");
}

TEST(WithoutBpf, TellsTheSameOfAProcessWithEverythingSet) {
  const ForkedProcess child(SetEverything);
  ExpectSame(Captured(child, kWithBpf), Captured(child, kWithoutBpf));
}

TEST(WithoutBpf, TellsTheSameOfAPlainProcessAndOfThreads) {
  const ForkedProcess child([] {
    for (int i = 0; i < 3; ++i) {
      std::thread([i] {
        ::prctl(PR_SET_NAME, ("thread-" + std::to_string(i)).c_str());
        ::prctl(PR_SET_TIMERSLACK, 1000 + i);
        if (i == 1) {
          const struct sched_param parameter = {.sched_priority = 0};
          ::sched_setscheduler(0, SCHED_BATCH | SCHED_RESET_ON_FORK, &parameter);
        }
        while (true) ::pause();
      }).detach();
    }
  });
  child.AwaitPauses();
  ExpectSame(Captured(child, kWithBpf), Captured(child, kWithoutBpf));
}

TEST(WithoutBpf, TellsTheSameOfHugePagesWhereAdvised) {
  constexpr unsigned long kExceptAdvised = 2;  // PR_THP_DISABLE_EXCEPT_ADVISED, Linux 6.18
  const pid_t probe = ::fork();
  if (probe == 0) ::_exit(::prctl(PR_SET_THP_DISABLE, 1, kExceptAdvised, 0, 0) == 0 ? 0 : 1);
  int status = 0;
  ASSERT_EQ(::waitpid(probe, &status, 0), probe);
  if (status != 0) GTEST_SKIP() << "not known to this kernel";
  const ForkedProcess child([] {
    Require(::prctl(PR_SET_THP_DISABLE, 1, kExceptAdvised, 0, 0) == 0, "PR_SET_THP_DISABLE");
  });
  const auto with = Captured(child, kWithBpf);
  EXPECT_TRUE(with.extra().thp_disabled_but_advised());
  EXPECT_FALSE(with.extra().thp_disabled());
  ExpectSame(with, Captured(child, kWithoutBpf));
}

TEST(WithoutBpf, TellsTheSameOfLockedFutureMemory) {
  for (const int flags : {int{MCL_FUTURE}, MCL_FUTURE | MCL_ONFAULT}) {
    const ForkedProcess child([flags] { Require(::mlockall(flags) == 0, "mlockall"); });
    ExpectSame(Captured(child, kWithBpf), Captured(child, kWithoutBpf));
  }
}

TEST(WithoutBpf, TellsTheSameOfATemporaryMask) {
  const ForkedProcess child([] {},
                            [] {
                              sigset_t mask;
                              sigfillset(&mask);
                              sigdelset(&mask, SIGTERM);
                              while (true) ::sigsuspend(&mask);
                            });
  child.AwaitCall(child.pid(), SYS_rt_sigsuspend);
  const auto without = Captured(child, kWithoutBpf);
  EXPECT_TRUE(without.threads(0).extra().has_temporary_signal_mask());
  ExpectSame(Captured(child, kWithBpf), without);
}

struct Sleep {
  const char* name;
  int64_t number;
  ForkedProcess::Body call;  // for 60 s
  // Whether the kernel hands out what is left, however often the call was broken off.
  bool told;
};

constexpr struct timespec kMinute = {.tv_sec = 60, .tv_nsec = 0};

const Sleep kSleeps[] = {
    {"nanosleep", SYS_nanosleep, [] { ::syscall(SYS_nanosleep, &kMinute, nullptr); }, false},
    {"nanosleep onto itself", SYS_nanosleep,
     [] {
       struct timespec time = kMinute;
       ::syscall(SYS_nanosleep, &time, &time);
     },
     true},
    {"clock_nanosleep", SYS_clock_nanosleep,
     [] { ::syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &kMinute, nullptr); }, false},
    {"poll", SYS_poll, [] { ::syscall(SYS_poll, nullptr, 0, 60'000); }, false},
    {"futex", SYS_futex,
     [] {
       uint32_t word = 7;
       ::syscall(SYS_futex, &word, FUTEX_WAIT, 7, &kMinute, nullptr, 0);
     },
     false},
    {"epoll_wait", SYS_epoll_wait,
     [] {
       struct epoll_event event;
       ::epoll_wait(::epoll_create1(0), &event, 1, 60'000);
     },
     false},
};

int64_t Remaining(const proto::ProcessState& state) {
  return state.threads(0).extra().interrupted_call().remaining_ns();
}

TEST(WithoutBpf, InterruptedSleepsKeepTheirRemainingTime) {
  for (const Sleep& sleep : kSleeps) {
    const ForkedProcess child([] {}, sleep.call);
    std::this_thread::sleep_for(std::chrono::milliseconds(400));  // the time that must be told
    const auto state = Captured(child, kWithoutBpf);
    ASSERT_EQ(state.threads_size(), 1) << sleep.name;
    EXPECT_EQ(state.threads(0).extra().interrupted_call().number(), sleep.number) << sleep.name;
    EXPECT_LE(Remaining(state), 59'650'000'000) << sleep.name;
    EXPECT_GE(Remaining(state), 58'500'000'000) << sleep.name;
  }
}

// Waits until the child is asleep again, after `switches` voluntary ones. Nothing tells when that
// is.
void AwaitSleepAfter(const ForkedProcess& child, uint64_t switches) {
  const base::Stopwatch watch;
  for (;;) {
    ASSERT_LT(watch.Elapsed(), absl::Seconds(10));
    const auto status = kernel::ReadThreadStatus(child.handle(), child.pid());
    const auto call = kernel::ReadThreadSyscall(child.handle(), child.pid());
    ASSERT_TRUE(status.ok() && call.ok());
    if (!call->running && call->number >= 0 && status->voluntary_switches > switches) return;
    ::sched_yield();
  }
}

uint64_t SwitchesOf(const ForkedProcess& child) {
  return kernel::ReadThreadStatus(child.handle(), child.pid())->voluntary_switches;
}

// As the engine does it, of a child that sleeps.
absl::StatusOr<proto::ProcessState> NoteFreezeAndCapture(Capturer& capturer,
                                                         const ForkedProcess& child,
                                                         const pagemap::VmaList& vmas) {
  PREDUMP_RETURN_IF_ERROR(capturer.NoteSleepers());
  PREDUMP_ASSIGN_OR_RETURN(auto frozen,
                           kernel::FrozenProcess::Freeze(child.handle(), absl::Seconds(5)));
  return capturer.Capture(frozen, vmas);
}

// The setup before round 0 stops a thread once; what it is in then calls itself restart_syscall.
TEST(WithoutBpf, SleepsBrokenOffTwiceKeepTheirNumberAndTime) {
  for (const Sleep& sleep : kSleeps) {
    if (sleep.number == SYS_epoll_wait) continue;  // the kernel has no restart block for it
    for (const bool surveyed : {true, false}) {
      const ForkedProcess child([] {}, sleep.call);
      std::this_thread::sleep_for(std::chrono::milliseconds(400));  // the time that must be told
      auto capturer = Capturer::Create(child.handle(), kWithoutBpf);
      ASSERT_TRUE(capturer.ok()) << capturer.status();
      const auto vmas = pagemap::VmaList::Read(child.handle(), true);
      if (surveyed) {
        ASSERT_TRUE(capturer->Survey(*vmas).ok());
      }
      uint64_t stopped = 0;
      {
        auto first = kernel::FrozenProcess::Freeze(child.handle(), absl::Seconds(5));
        ASSERT_TRUE(first.ok()) << first.status();
        stopped = SwitchesOf(child);
        ASSERT_TRUE(std::move(*first).Thaw().ok());
      }
      ASSERT_NO_FATAL_FAILURE(AwaitSleepAfter(child, stopped));
      const auto state = NoteFreezeAndCapture(*capturer, child, *vmas);
      ASSERT_TRUE(state.ok()) << sleep.name << ": " << state.status();
      EXPECT_EQ(state->threads(0).extra().interrupted_call().number(), sleep.number) << sleep.name;
      EXPECT_GE(Remaining(*state), 58'500'000'000) << sleep.name;
      // Late rather than early where nobody looked before the first stop.
      const bool known = surveyed || sleep.told;
      EXPECT_LE(Remaining(*state), known ? 59'650'000'000 : 60'000'000'000) << sleep.name;
    }
  }
}

TEST(WithoutBpf, TheSetupTellsWhatItBrokeOff) {
  for (const Sleep& sleep : kSleeps) {
    if (sleep.number == SYS_epoll_wait) continue;
    const ForkedProcess child([] {}, sleep.call);
    auto capturer = Capturer::Create(child.handle(), kWithoutBpf);
    ASSERT_TRUE(capturer.ok()) << capturer.status();
    const auto vmas = pagemap::VmaList::Read(child.handle(), true);
    ASSERT_TRUE(capturer->Survey(*vmas).ok());
    std::this_thread::sleep_for(std::chrono::milliseconds(400));  // the time that must be told
    auto setup = kernel::InjectSetup(child.handle(), {.helper = false});
    ASSERT_TRUE(setup.ok()) << setup.status();
    capturer->RememberSetup(*setup);
    // The setup's stops and the sleep before are behind it.
    ASSERT_NO_FATAL_FAILURE(AwaitSleepAfter(child, 0));
    const auto state = NoteFreezeAndCapture(*capturer, child, *vmas);
    ASSERT_TRUE(state.ok()) << sleep.name << ": " << state.status();
    EXPECT_EQ(state->threads(0).extra().interrupted_call().number(), sleep.number) << sleep.name;
    EXPECT_LE(Remaining(*state), 59'650'000'000) << sleep.name;
    EXPECT_GE(Remaining(*state), 58'500'000'000) << sleep.name;
  }
}

// The same call with the same arguments, but a sleep that began after the note: all of it is left.
TEST(AnySource, ANoteOfAnEarlierSleepIsNotBelieved) {
  struct Case {
    const char* name;
    void (*sleep)(const struct timespec* time);
  };
  static constexpr Case kCases[] = {
      {"nanosleep", [](const struct timespec* t) { ::syscall(SYS_nanosleep, t, nullptr); }},
      {"epoll_pwait2",
       [](const struct timespec* t) {
         static const int epoll = ::epoll_create1(0);
         static struct epoll_event event;
         ::syscall(SYS_epoll_pwait2, epoll, &event, 1, t, nullptr, 8);
       }},
  };
  for (const Case& each : kCases) {
    for (const CaptureOptions& options : {kWithBpf, kWithoutBpf}) {
      const ForkedProcess child([] {},
                                [&] {
                                  // Long enough to be found in.
                                  struct timespec time = {2, 0};
                                  for (int i = 0; i < 2; ++i) {
                                    each.sleep(&time);
                                    time = {60, 0};
                                  }
                                });
      auto capturer = Capturer::Create(child.handle(), options);
      ASSERT_TRUE(capturer.ok()) << capturer.status();
      const auto vmas = pagemap::VmaList::Read(child.handle(), true);
      ASSERT_TRUE(capturer->Survey(*vmas).ok());
      ASSERT_NO_FATAL_FAILURE(AwaitSleepAfter(child, 0));
      const uint64_t first = SwitchesOf(child);
      ASSERT_TRUE(capturer->NoteSleepers().ok());
      ASSERT_NO_FATAL_FAILURE(AwaitSleepAfter(child, first));
      auto frozen = kernel::FrozenProcess::Freeze(child.handle(), absl::Seconds(5));
      ASSERT_TRUE(frozen.ok()) << frozen.status();
      const auto state = capturer->Capture(*frozen, *vmas);
      ASSERT_TRUE(state.ok()) << each.name << ": " << state.status();
      // The kernel tells BPF the deadline of a nanosleep; nobody knows more than the note of the
      // others.
      const int64_t slept_ms = 60'000 - Remaining(*state) / 1'000'000;
      EXPECT_GE(slept_ms, 0) << each.name;
      EXPECT_LE(slept_ms, 1000) << each.name;  // believed, it would be about 2000
    }
  }
}

TEST(WithoutBpf, AnAlarmThatGoesOffIsInOnePlace) {
  for (int i = 0; i < 20; ++i) {
    const ForkedProcess child([] {
      sigset_t all;
      sigfillset(&all);
      ::sigprocmask(SIG_SETMASK, &all, nullptr);
      const struct itimerval timer = {.it_interval = {0, 0}, .it_value = {0, 5'000}};
      Require(::setitimer(ITIMER_REAL, &timer, nullptr) == 0, "setitimer");
    });
    auto state = Captured(child, kWithoutBpf);
    ASSERT_NE(state.threads_size(), 0);
    const bool armed = Task(state).timers().real().vusec() != 0;
    EXPECT_EQ(Task(state).signals_s().signals_size(), armed ? 0 : 1);
  }
}

TEST(WithoutBpf, SurveyPassesAsAPreviewAndBlocksNothing) {
  const ForkedProcess child(SetEverything);
  auto capturer = Capturer::Create(child.handle(), kWithoutBpf);
  ASSERT_TRUE(capturer.ok()) << capturer.status();
  EXPECT_FALSE(capturer->bpf_status().ok());
  const auto vmas = pagemap::VmaList::Read(child.handle(), true);
  ASSERT_TRUE(vmas.ok());
  const auto survey = capturer->Survey(*vmas);
  ASSERT_TRUE(survey.ok()) << survey.status();
  EXPECT_TRUE(survey->blockers.empty()) << survey->blockers.front().reason();
  EXPECT_EQ(survey->preview.pid(), static_cast<uint32_t>(child.pid()));
  const absl::Status valid = images::ValidateState(survey->preview, images::StateKind::kPreview);
  EXPECT_TRUE(valid.ok()) << valid;
}

TEST(WithoutBpf, RefusesWhatBpfRefuses) {
  const std::pair<const char*, ForkedProcess::Body> refused[] = {
      {"POSIX timers",
       [] {
         timer_t timer;
         Require(::timer_create(CLOCK_MONOTONIC, nullptr, &timer) == 0, "timer_create");
       }},
      {"merged",
       [] {
         constexpr int kSetMemoryMerge = 67;
         Require(::prctl(kSetMemoryMerge, 1, 0, 0, 0) == 0, "PR_SET_MEMORY_MERGE");
       }},
      {"memory failures",
       [] {
         Require(::prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0) == 0,
                 "PR_MCE_KILL");
       }},
  };
  for (const auto& [reason, set_up] : refused) {
    const ForkedProcess child(set_up);
    for (const CaptureOptions& options : {kWithBpf, kWithoutBpf}) {
      const auto state = CaptureOnce(child.handle(), options);
      EXPECT_TRUE(absl::IsFailedPrecondition(state.status())) << reason << state.status();
      EXPECT_THAT(std::string(state.status().message()), ::testing::HasSubstr(reason));
    }
  }
}

TEST(WithoutBpf, LeavesNoTrace) {
  const ForkedProcess child([] {
    for (int i = 0; i < 3; ++i) {
      std::thread([] {
        while (true) ::pause();
      }).detach();
    }
  });
  child.AwaitPauses();  // a new thread blocks all signals
  const auto before = test_support::ProcSnapshot::Take(child.pid());
  ASSERT_TRUE(before.ok()) << before.status();
  for (int i = 0; i < 20; ++i) Captured(child, kWithoutBpf);
  const auto after = test_support::ProcSnapshot::Take(child.pid());
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_THAT(before->Diff(*after), ::testing::IsEmpty());
}

TEST(WithoutBpf, TimeForOneFourAndSixtyFourThreads) {
  for (const int threads : {1, 4, 64}) {
    const ForkedProcess child([threads] {
      for (int i = 1; i < threads; ++i) {
        std::thread([] {
          while (true) ::pause();
        }).detach();
      }
    });
    auto capturer = Capturer::Create(child.handle(), kWithoutBpf);
    ASSERT_TRUE(capturer.ok()) << capturer.status();
    const auto vmas = pagemap::VmaList::Read(child.handle(), true);
    ASSERT_TRUE(vmas.ok());
    ASSERT_TRUE(capturer->Survey(*vmas).ok());
    std::vector<double> milliseconds;
    for (int i = 0; i < 10; ++i) {
      const kernel::CpuFollower follower(child.handle());
      auto frozen = kernel::FrozenProcess::Freeze(child.handle(), absl::Seconds(5));
      ASSERT_TRUE(frozen.ok()) << frozen.status();
      const base::Stopwatch watch;
      const auto state = capturer->Capture(*frozen, *vmas);
      milliseconds.push_back(absl::ToDoubleMilliseconds(watch.Elapsed()));
      ASSERT_TRUE(state.ok()) << state.status();
      ASSERT_EQ(state->threads_size(), threads);
    }
    std::sort(milliseconds.begin(), milliseconds.end());
    std::printf("capture of %d threads without BPF: median %.1f ms, maximum %.1f ms\n", threads,
                milliseconds[milliseconds.size() / 2], milliseconds.back());
    EXPECT_LT(milliseconds[milliseconds.size() / 2], 200);
  }
}

}  // namespace
}  // namespace predump::checkpoint
