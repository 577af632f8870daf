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
#include "tests/kernel/child_process.h"
#include "tests/kernel/process_snapshot.h"

namespace predump::kernel {
namespace {

constexpr int kDeaths = 2000;

struct Progress {
  std::atomic<long> steps;
  std::atomic<long> wrong;
  std::atomic<long> engine_started;
  std::atomic<long> setups;
};

void ComputeAndCheck(Progress& progress) {
  unsigned long hash = 1;
  for (long n = 0;; ++n) {
    unsigned long values[64];
    for (unsigned long i = 0; i < 64; ++i) values[i] = hash + i * i;
    hash = hash * 6364136223846793005ul + 1442695040888963407ul;
    unsigned long left = 0;
    for (unsigned long i = 0; i < 64; ++i) left ^= (values[i] - i * i) ^ values[0];
    if (left != 0) ++progress.wrong;
    const struct timespec nap = {0, 20'000};
    if (n % 50 == 0 && ::nanosleep(&nap, nullptr) != 0) ++progress.wrong;
    if (n % 33 == 0 && ::getppid() <= 0) ++progress.wrong;
    if (n % 77 == 0 && ::waitpid(-1, nullptr, WNOHANG | __WALL) != -1) ++progress.wrong;
    ++progress.steps;
  }
}

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
  ChildProcess child([&] { ComputeAndCheck(*progress); });
  ASSERT_TRUE(Eventually([&] { return progress->steps > 1000; }));
  const auto process = ProcessHandle::Open(child.pid());
  ASSERT_TRUE(process.ok()) << process.status();
  const ProcessSnapshot before = TakeSnapshot(*process);

  for (int death = 0; death < kDeaths; ++death) {
    progress->engine_started = 0;
    ChildProcess engine([&] {
      progress->engine_started = 1;
      for (int i = 0;; ++i) {
        auto setup = InjectSetup(*process, {.helper = i % 2 == 0});
        if (setup.ok()) ++progress->setups;
      }
    });
    while (progress->engine_started == 0) ::sched_yield();
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
  EXPECT_GT(progress->setups, 0);
}

}  // namespace
}  // namespace predump::kernel
