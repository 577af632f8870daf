// The target must outlive an engine that is killed at any instant of the setup.
#include <dirent.h>
#include <sys/random.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>

#include "gtest/gtest.h"
#include "src/kernel/setup_injection.h"
#include "tests/kernel/checked_child.h"
#include "tests/kernel/child_process.h"
#include "tests/kernel/dying_engine.h"
#include "tests/kernel/process_snapshot.h"

namespace predump::kernel {
namespace {

constexpr int kDeaths = 2000;

struct Progress {
  std::atomic<long> steps;
  std::atomic<long> wrong;
  std::atomic<long> setups;
};

TEST(SetupDeathTest, TargetSurvivesTracersKilledAtRandomMoments) {
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
  ChildProcess child([&] { ComputeAndCheck(*progress, Threads::kOne); });
  ASSERT_TRUE(Eventually([&] { return progress->steps > 1000; }));
  const auto process = ProcessHandle::Open(child.pid());
  ASSERT_TRUE(process.ok()) << process.status();
  const ProcessSnapshot before = TakeSnapshot(*process);

  for (int death = 0; death < kDeaths; ++death) {
    const long setups = progress->setups;
    ChildProcess engine([&] {
      for (int i = 0;; ++i) {
        auto setup = InjectSetup(*process, {.helper = i % 2 == 0});
        if (setup.ok()) ++progress->setups;
      }
    });
    // Its first setup takes an engine just forked many milliseconds; the ones that follow do not.
    ASSERT_TRUE(Eventually([&] { return progress->setups > setups; })) << "death " << death;
    ::usleep(static_cast<useconds_t>(delay_us(random)));
    engine.Kill();
    ASSERT_TRUE(child.Alive()) << "death " << death;
    const long steps = progress->steps;
    ASSERT_TRUE(Eventually([&] { return progress->steps > steps + 100; })) << "death " << death;
    ASSERT_EQ(progress->wrong, 0) << "death " << death;
    ASSERT_TRUE(Eventually([&] { return TakeSnapshot(*process) == before; }))
        << "death " << death << "\n"
        << before.maps << TakeSnapshot(*process).maps;
  }
  printf("%d deaths, %ld whole setups in between\n", kDeaths, progress->setups.load());
}

// At each step of the setup, where a death at a random moment meets the long ones only: before the
// first stop of the target most of all, and hardly ever between two of its stops.
TEST(SetupDeathTest, EveryRegisterSurvivesTracersKilledAtEachCall) {
  for (const bool helper : {false, true}) {
    SharedValue<Progress> progress;
    ChildProcess child([&] { SpinWithEveryRegister(progress->steps); });
    ASSERT_TRUE(Eventually([&] { return progress->steps > 1000; }));
    const auto process = ProcessHandle::Open(child.pid());
    ASSERT_TRUE(process.ok()) << process.status();
    const ProcessSnapshot before = TakeSnapshot(*process);
    const auto engine = [&] {
      if (InjectSetup(*process, {.helper = helper}).ok()) ++progress->setups;
    };
    int call = 0;
    for (;; ++call) {
      progress->setups = 0;
      if (!DiesBeforeCall(engine, call)) break;
      const long steps = progress->steps;
      ASSERT_TRUE(Eventually([&] { return progress->steps > steps + 100; })) << "call " << call;
      ASSERT_TRUE(child.Alive()) << "call " << call;
      ASSERT_TRUE(Eventually([&] { return TakeSnapshot(*process) == before; }))
          << "call " << call << "\n"
          << before.maps << TakeSnapshot(*process).maps;
    }
    printf("%s helper: %d calls\n", helper ? "with" : "without", call);
    EXPECT_EQ(progress->setups, 1) << "the engine that came to its end did not do its work";
  }
}

}  // namespace
}  // namespace predump::kernel
