#include "src/kernel/readout_injection.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sys/ptrace.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "tests/kernel/checked_child.h"
#include "tests/kernel/child_process.h"
#include "tests/kernel/dying_engine.h"
#include "tests/kernel/process_snapshot.h"
#include "tests/kernel/readout_calls.h"

namespace predump::kernel {
namespace {

template <typename T>
T As(const ReadoutAnswer& answer) {
  T value;
  EXPECT_EQ(answer.bytes.size(), sizeof value);
  memcpy(&value, answer.bytes.data(), std::min(sizeof value, answer.bytes.size()));
  return value;
}

void Handler(int) {}

TEST(ReadoutInjectionTest, AsksEveryThreadAndPutsItBackAsItWas) {
  static char stack_memory[65536];
  SharedValue<Progress> progress;
  ChildProcess child([&] {
    struct sigaction action = {};
    action.sa_handler = Handler;
    ::sigaction(SIGUSR1, &action, nullptr);
    const stack_t stack = {.ss_sp = stack_memory, .ss_flags = 0, .ss_size = sizeof stack_memory};
    ::sigaltstack(&stack, nullptr);
    std::thread sleeper([] { ::pause(); });
    std::thread poller([] { ::poll(nullptr, 0, -1); });
    ComputeAndCheck(*progress);
  });
  const auto process = ProcessHandle::Open(child.pid());
  ASSERT_TRUE(process.ok()) << process.status();
  ASSERT_TRUE(Eventually([&] {
    if (progress->steps < 1000) return false;
    const auto tids = ListThreads(*process);
    for (const pid_t tid : *tids) {
      if (tid != child.pid() && ReadThreadStatus(*process, tid)->blocked != 0) return false;
    }
    return tids->size() == 3;
  }));
  const ProcessSnapshot before = TakeSnapshot(*process);
  auto frozen = FrozenProcess::Freeze(*process, absl::Seconds(5));
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  ASSERT_EQ(frozen->threads().size(), 3u);
  std::vector<user_regs_struct> registers;
  std::vector<uint64_t> masks;
  for (const Tracee& thread : frozen->threads()) {
    registers.push_back(*thread.GetRegisters());
    masks.push_back(*thread.GetSignalMask());
  }
  const long steps = progress->steps;

  const base::Stopwatch watch;
  const auto answers = ReadOut(*frozen, SomeCalls(3));
  printf("readout of 3 threads, 3 calls each: %.3f ms\n",
         absl::ToDoubleMilliseconds(watch.Elapsed()));
  ASSERT_TRUE(answers.ok()) << answers.status();
  for (size_t i = 0; i < 3; ++i) {
    const Tracee& thread = frozen->threads()[i];
    EXPECT_EQ((*answers)[i][0].result, thread.tid());
    EXPECT_EQ((*answers)[i][1].result, 0);
    const stack_t stack = As<stack_t>((*answers)[i][1]);
    EXPECT_EQ(stack.ss_size, i == 0 ? sizeof stack_memory : 0u);
    uint64_t action[4];
    ASSERT_EQ((*answers)[i][2].bytes.size(), sizeof action);
    memcpy(action, (*answers)[i][2].bytes.data(), sizeof action);
    EXPECT_EQ(action[0], reinterpret_cast<uint64_t>(&Handler));
    const user_regs_struct now = *thread.GetRegisters();
    EXPECT_EQ(memcmp(&now, &registers[i], sizeof now), 0) << "thread " << i;
    EXPECT_EQ(*thread.GetSignalMask(), masks[i]);
    EXPECT_EQ(ReadThreadStat(*process, thread.tid())->state, 't');
  }
  EXPECT_EQ(progress->steps, steps) << "the process ran";
  EXPECT_TRUE(AllZero(ReadPadding(*process)));
  EXPECT_EQ(TakeSnapshot(*process), before);
  ASSERT_TRUE(std::move(*frozen).Thaw().ok());
  EXPECT_TRUE(Eventually([&] { return progress->steps > steps + 1000; }));
  EXPECT_EQ(progress->wrong, 0);
  EXPECT_EQ(TakeSnapshot(*process), before);
}

TEST(ReadoutInjectionTest, ThreadsWithoutCallsAreLeftAlone) {
  ChildProcess child([] {
    for (;;) ::pause();
  });
  const auto process = ProcessHandle::Open(child.pid());
  auto frozen = FrozenProcess::Freeze(*process, absl::Seconds(5));
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  const std::vector<std::vector<ReadoutCall>> none(1);
  const auto answers = ReadOut(*frozen, none);
  ASSERT_TRUE(answers.ok()) << answers.status();
  EXPECT_TRUE((*answers)[0].empty());
  const std::vector<std::vector<ReadoutCall>> too_many(2);
  EXPECT_TRUE(absl::IsInvalidArgument(ReadOut(*frozen, too_many).status()));
  const std::vector<std::vector<ReadoutCall>> too_large(
      1, {{.number = SYS_getpid, .buffer_argument = 0, .buffer_bytes = 4097}});
  EXPECT_TRUE(absl::IsInvalidArgument(ReadOut(*frozen, too_large).status()));
}

TEST(ReadoutInjectionTest, LockingOfNewMemoryShowsOnTheNewPage) {
  for (const bool locks : {false, true}) {
    SharedValue<Progress> progress;
    ChildProcess child([&] {
      if (locks) ::mlockall(MCL_FUTURE);
      progress->started = 1;
      for (;;) ::pause();
    });
    ASSERT_TRUE(Eventually([&] { return progress->started == 1; }));
    const auto process = ProcessHandle::Open(child.pid());
    auto frozen = FrozenProcess::Freeze(*process, absl::Seconds(5));
    ASSERT_TRUE(frozen.ok()) << frozen.status();
    const std::vector<std::vector<ReadoutCall>> calls(
        1, {{.number = SYS_msync,
             .arguments = {0, 4096, MS_INVALIDATE | MS_ASYNC},
             .new_page_argument = 0}});
    const auto answers = ReadOut(*frozen, calls);
    ASSERT_TRUE(answers.ok()) << answers.status();
    EXPECT_EQ((*answers)[0][0].result, locks ? -EBUSY : 0);
  }
}

TEST(ReadoutInjectionTest, RefusesAConfinedThreadAndSurvivesAFullAddressSpace) {
  {
    SharedValue<Progress> progress;
    ChildProcess child([&] {
      struct sock_filter allow = {.code = 0x06, .jt = 0, .jf = 0, .k = SECCOMP_RET_ALLOW};
      struct sock_fprog program = {.len = 1, .filter = &allow};
      ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
      if (::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) ::_exit(1);
      ComputeAndCheck(*progress);
    });
    ASSERT_TRUE(Eventually([&] { return progress->steps > 100; }));
    const auto process = ProcessHandle::Open(child.pid());
    const absl::Status status = FreezeAndReadOut(*process);
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("seccomp"));
  }
  SharedValue<Progress> progress;
  ChildProcess child([&] {
    const struct rlimit limit = {.rlim_cur = 1, .rlim_max = RLIM_INFINITY};
    ::setrlimit(RLIMIT_AS, &limit);
    ComputeAndCheck(*progress);
  });
  ASSERT_TRUE(Eventually([&] { return progress->steps > 100; }));
  const auto process = ProcessHandle::Open(child.pid());
  const ProcessSnapshot before = TakeSnapshot(*process);
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(base::ErrnoOf(FreezeAndReadOut(*process)), ENOMEM);
    EXPECT_EQ(TakeSnapshot(*process), before);
  }
  const long steps = progress->steps;
  EXPECT_TRUE(Eventually([&] { return progress->steps > steps + 100; }));
  EXPECT_EQ(progress->wrong, 0);
}

TEST(ReadoutInjectionTest, RestartableSequenceIsAbortedNotContinued) {
  SharedValue<RseqState> state;
  ChildProcess child([&] { SpinInsideRestartableSequence(*state); });
  volatile uint64_t& spins = state->spins;
  ASSERT_TRUE(Eventually([&] { return spins > 1000; }));
  const auto process = ProcessHandle::Open(child.pid());
  for (int i = 0; i < 20; ++i) {
    const uint64_t aborts = state->aborts;
    const absl::Status status = FreezeAndReadOut(*process);
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(Eventually([&] { return state->aborts > aborts; }));
  }
}

TEST(ReadoutInjectionTest, ProcessSurvivesEnginesKilledAtAnyMoment) {
  constexpr int kDeaths = 400;
  const char* given = ::getenv("PREDUMP_TEST_SEED");
  unsigned seed = 0;
  if (given != nullptr) {
    seed = static_cast<unsigned>(::strtoul(given, nullptr, 10));
  } else {
    ASSERT_EQ(::getrandom(&seed, sizeof seed, 0), ssize_t{sizeof seed});
  }
  printf("PREDUMP_TEST_SEED=%u\n", seed);
  std::mt19937 random(seed);
  std::uniform_int_distribution<int> delay_us(0, 3000);

  SharedValue<Progress> progress;
  ChildProcess child([&] {
    std::thread([&] {
      for (;;) {
        if (::poll(nullptr, 0, 3) != 0) ++progress->wrong;
        ++progress->returns;
      }
    }).detach();
    ComputeAndCheck(*progress);
  });
  ASSERT_TRUE(Eventually([&] { return progress->steps > 1000 && progress->returns > 3; }));
  const auto process = ProcessHandle::Open(child.pid());
  ASSERT_TRUE(process.ok()) << process.status();
  const ProcessSnapshot before = TakeSnapshot(*process);

  for (int death = 0; death < kDeaths; ++death) {
    const long readouts = progress->readouts;
    ChildProcess engine([&] {
      for (;;) {
        if (FreezeAndReadOut(*process).ok()) ++progress->readouts;
      }
    });
    // Its first readout takes an engine just forked many milliseconds; the ones that follow do not.
    ASSERT_TRUE(Eventually([&] { return progress->readouts > readouts; })) << "death " << death;
    ::usleep(static_cast<useconds_t>(delay_us(random)));
    engine.Kill();
    ASSERT_TRUE(child.Alive()) << "death " << death;
    const long steps = progress->steps;
    const long returns = progress->returns;
    ASSERT_TRUE(Eventually([&] {
      return progress->steps > steps + 100 && progress->returns > returns;
    })) << "death "
        << death;
    ASSERT_EQ(progress->wrong, 0) << "death " << death;
    ASSERT_TRUE(Eventually([&] { return TakeSnapshot(*process) == before; }))
        << "death " << death << "\n"
        << before.maps << TakeSnapshot(*process).maps;
  }
  printf("%d deaths, %ld whole readouts in between\n", kDeaths, progress->readouts.load());
  // What a dead engine left in the padding is known as ours, and gone after a whole readout.
  ASSERT_TRUE(FreezeAndReadOut(*process).ok());
  EXPECT_TRUE(AllZero(ReadPadding(*process)));
}

TEST(ReadoutInjectionTest, EveryRegisterSurvivesEnginesKilledAtEachCall) {
  SharedValue<Progress> progress;
  ChildProcess child([&] {
    std::thread([&] { SpinWithEveryRegister(progress->returns); }).detach();
    SpinWithEveryRegister(progress->steps);
  });
  const auto both_count = [&] {
    const long steps = progress->steps;
    const long returns = progress->returns;
    return Eventually(
        [&] { return progress->steps > steps + 100 && progress->returns > returns + 100; });
  };
  ASSERT_TRUE(both_count());
  const auto process = ProcessHandle::Open(child.pid());
  ASSERT_TRUE(process.ok()) << process.status();
  const ProcessSnapshot before = TakeSnapshot(*process);
  const auto engine = [&] {
    if (FreezeAndReadOut(*process).ok()) ++progress->readouts;
  };
  int call = 0;
  for (;; ++call) {
    progress->readouts = 0;
    if (!DiesBeforeCall(engine, call)) break;
    ASSERT_TRUE(both_count()) << "call " << call;
    ASSERT_TRUE(child.Alive()) << "call " << call;
    ASSERT_TRUE(Eventually([&] { return TakeSnapshot(*process) == before; }))
        << "call " << call << "\n"
        << before.maps << TakeSnapshot(*process).maps;
  }
  printf("%d calls\n", call);
  EXPECT_EQ(progress->readouts, 1) << "the engine that came to its end did not do its work";
}

}  // namespace
}  // namespace predump::kernel
