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

// Holds a value in every general register and dies (SIGILL) when one is lost. The stack holds the
// address it counts at.
[[noreturn]] void SpinWithEveryRegister(std::atomic<long>& steps) {
  asm volatile(
      "push %0\n"
      "mov $1, %%eax\n mov $2, %%ebx\n mov $3, %%ecx\n mov $4, %%edx\n mov $5, %%esi\n"
      "mov $6, %%edi\n mov $7, %%ebp\n mov $8, %%r8d\n mov $9, %%r9d\n mov $10, %%r10d\n"
      "mov $11, %%r11d\n mov $12, %%r12d\n mov $13, %%r13d\n mov $14, %%r14d\n mov $15, %%r15d\n"
      "1:\n"
      "cmp $1, %%rax\n jne 2f\n cmp $2, %%rbx\n jne 2f\n cmp $3, %%rcx\n jne 2f\n"
      "cmp $4, %%rdx\n jne 2f\n cmp $5, %%rsi\n jne 2f\n cmp $6, %%rdi\n jne 2f\n"
      "cmp $7, %%rbp\n jne 2f\n cmp $8, %%r8\n jne 2f\n cmp $9, %%r9\n jne 2f\n"
      "cmp $10, %%r10\n jne 2f\n cmp $11, %%r11\n jne 2f\n cmp $12, %%r12\n jne 2f\n"
      "cmp $13, %%r13\n jne 2f\n cmp $14, %%r14\n jne 2f\n cmp $15, %%r15\n jne 2f\n"
      "push %%rax\n mov 8(%%rsp), %%rax\n incq (%%rax)\n pop %%rax\n"
      "jmp 1b\n"
      "2: ud2\n"
      :
      : "r"(&steps)
      : "memory");
  __builtin_unreachable();
}

TEST(SetupDeathTest, EveryRegisterSurvivesTracersKilledAtRandomMoments) {
  unsigned seed = 0;
  ASSERT_EQ(::getrandom(&seed, sizeof seed, 0), ssize_t{sizeof seed});
  printf("seed %u\n", seed);
  std::mt19937 random(seed);
  std::uniform_int_distribution<int> delay_us(0, 1000);
  SharedValue<Progress> progress;
  ChildProcess child([&] { SpinWithEveryRegister(progress->steps); });
  ASSERT_TRUE(Eventually([&] { return progress->steps > 1000; }));
  const auto process = ProcessHandle::Open(child.pid());
  ASSERT_TRUE(process.ok()) << process.status();
  for (int death = 0; death < 200; ++death) {
    progress->engine_started = 0;
    ChildProcess engine([&] {
      progress->engine_started = 1;
      for (;;) InjectSetup(*process, {.helper = false}).IgnoreError();
    });
    while (progress->engine_started == 0) ::sched_yield();
    ::usleep(static_cast<useconds_t>(delay_us(random)));
    engine.Kill();
    const long steps = progress->steps;
    ASSERT_TRUE(Eventually([&] { return progress->steps > steps + 100; })) << "death " << death;
    ASSERT_TRUE(child.Alive()) << "death " << death;
  }
}

}  // namespace
}  // namespace predump::kernel
