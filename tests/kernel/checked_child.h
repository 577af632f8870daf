// What children of the injection tests do: work whose every result is checked.
#ifndef PREDUMP_TESTS_KERNEL_CHECKED_CHILD_H_
#define PREDUMP_TESTS_KERNEL_CHECKED_CHILD_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "src/kernel/process.h"

namespace predump::kernel {

// Computes and calls for ever, and counts every sum or result that is not what it has to be. Of a
// child it finds no trace either, where it is the only thread: another one could see that of a
// setup.
enum class Threads { kOne, kSeveral };
[[noreturn]] void ComputeAndCheck(std::atomic<long>& steps, std::atomic<long>& wrong,
                                  Threads threads);
template <typename Progress>
[[noreturn]] void ComputeAndCheck(Progress& progress, Threads threads = Threads::kSeveral) {
  ComputeAndCheck(progress.steps, progress.wrong, threads);
}

// Holds a value in every general register and counts; dies (SIGILL) when one is lost.
[[noreturn]] void SpinWithEveryRegister(std::atomic<long>& steps);

struct RseqState {
  std::atomic<uint64_t> aborts;
  uint64_t spins;
  uint64_t release;
};
// A restartable sequence that spins until it is released; an abort is counted.
[[noreturn]] void SpinInsideRestartableSequence(RseqState& state);

// The padding of the vDSO (vdso_padding.h), where programs are put.
std::vector<std::byte> ReadPadding(const ProcessHandle& process);
bool AllZero(const std::vector<std::byte>& bytes);

}  // namespace predump::kernel

#endif  // PREDUMP_TESTS_KERNEL_CHECKED_CHILD_H_
