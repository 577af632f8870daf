// The two judges of register state and of restartable sequences, by themselves.
#include <gtest/gtest.h>
#include <sched.h>

#include <atomic>
#include <thread>
#include <vector>

#include "tests/workloads/rseq_counter.h"
#include "tests/workloads/vector_state.h"

namespace predump::workloads {
namespace {

TEST(VectorStateTest, SurvivesWhileNothingTouchesIt) {
  for (uint64_t seed = 0; seed < 100; ++seed) EXPECT_EQ(FindLostRegister(seed, 1000), nullptr);
}

TEST(VectorStateTest, ALostRegisterIsFound) {
  EXPECT_STREQ(FindLostRegister(1, 10, true), "vector register");
}

TEST(RseqCounterTest, IsRegisteredAndLosesNoCountUnderPreemption) {
  ASSERT_TRUE(RseqIsRegistered());
  RseqCounter counter;
  std::atomic<uint64_t> aborts = 0;
  constexpr int kThreads = 4;
  constexpr uint64_t kIncrements = 400;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      // All on one CPU, in sequences long enough to be preempted in.
      cpu_set_t cpus;
      CPU_ZERO(&cpus);
      CPU_SET(0, &cpus);
      sched_setaffinity(0, sizeof cpus, &cpus);
      for (uint64_t k = 0; k < kIncrements; ++k) aborts += counter.Increment(100'000);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(counter.Sum(), kThreads * kIncrements);
  EXPECT_GT(aborts, 0U);
}

}  // namespace
}  // namespace predump::workloads
