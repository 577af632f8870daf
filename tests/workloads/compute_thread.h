// A thread that computes: everything the kernel and libc keep per thread is given a value of its
// own and looked at again and again.
#ifndef PREDUMP_TESTS_WORKLOADS_COMPUTE_THREAD_H_
#define PREDUMP_TESTS_WORKLOADS_COMPUTE_THREAD_H_

#include <condition_variable>
#include <mutex>
#include <vector>

#include "tests/workloads/pages.h"
#include "tests/workloads/workload.h"

namespace predump::workloads {

// What the compute threads share: whose turn it is, and two numbers that agree under the mutex.
struct TurnTable {
  std::mutex mutex;
  std::condition_variable changed;
  size_t turn = 0;
  uint64_t first = 0;
  uint64_t second = 0;
};

class ComputeThread {
 public:
  struct Settings {
    size_t index;
    size_t threads;
    size_t pages;
    uint64_t spins;    // per iteration, with known values in all vector registers
    int64_t pause_ns;  // per iteration
  };

  ComputeThread(Workload& workload, TurnTable& table, const Settings& settings);
  // The body of the thread, until `stop`.
  void Run(std::atomic<bool>& stop);
  const CheckedPages& pages() const { return pages_; }

 private:
  void SetUp();
  void CheckThreadState();
  void CheckSignalsAndStack();
  void RaiseOnAlternateStack();
  void TakeTurn(std::atomic<bool>& stop);

  Workload& workload_;
  TurnTable& table_;
  const Settings settings_;
  CheckedPages pages_;
  Random random_;
  std::vector<std::byte> stack_;
  pid_t tid_ = 0;
  int rounding_ = 0;
  uint32_t mxcsr_ = 0;
};

}  // namespace predump::workloads

#endif  // PREDUMP_TESTS_WORKLOADS_COMPUTE_THREAD_H_
