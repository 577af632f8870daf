// Counting per CPU inside restartable sequences (rseq(2)), with the area glibc registered.
#ifndef PREDUMP_TESTS_WORKLOADS_RSEQ_COUNTER_H_
#define PREDUMP_TESTS_WORKLOADS_RSEQ_COUNTER_H_

#include <cstdint>
#include <memory>

namespace predump::workloads {

// One plain word per CPU, each in a cache line of its own. An increment is load, spin, store; only
// the abort that the kernel promises on preemption, migration and signals keeps it from being
// lost. If that abort gets lost, so do counts, and Sum() is short.
class RseqCounter {
 public:
  RseqCounter();
  // Adds one on whatever CPU this is, spinning `spins` turns inside the sequence, retrying until it
  // took effect. Returns how often it was aborted.
  uint64_t Increment(uint64_t spins);
  // Only while nobody increments.
  uint64_t Sum() const;
  // The first CPU's word, for tests that spoil it.
  const void* data() const { return slots_.get(); }

 private:
  struct alignas(64) Slot {
    uint64_t count;
  };
  size_t cpus_;
  std::unique_ptr<Slot[]> slots_;
};

// Whether glibc registered an area for the calling thread and the kernel still knows it.
bool RseqIsRegistered();

}  // namespace predump::workloads

#endif  // PREDUMP_TESTS_WORKLOADS_RSEQ_COUNTER_H_
