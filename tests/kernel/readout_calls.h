// What the tests of readouts share.
#ifndef PREDUMP_TESTS_KERNEL_READOUT_CALLS_H_
#define PREDUMP_TESTS_KERNEL_READOUT_CALLS_H_

#include <signal.h>
#include <sys/syscall.h>

#include <atomic>
#include <cstddef>
#include <utility>
#include <vector>

#include "src/base/errors.h"
#include "src/kernel/readout_injection.h"

namespace predump::kernel {

// What a child that is read out tells of itself.
struct Progress {
  std::atomic<long> steps;
  std::atomic<long> wrong;
  std::atomic<long> returns;
  std::atomic<long> started;
  std::atomic<long> readouts;
};

// Some calls with and without buffers, for every thread.
inline std::vector<std::vector<ReadoutCall>> SomeCalls(size_t threads) {
  return std::vector<std::vector<ReadoutCall>>(
      threads, {{.number = SYS_gettid},
                {.number = SYS_sigaltstack, .buffer_argument = 1, .buffer_bytes = sizeof(stack_t)},
                {.number = SYS_rt_sigaction,
                 .arguments = {SIGUSR1, 0, 0, 8},
                 .buffer_argument = 2,
                 .buffer_bytes = 32}});
}

inline absl::Status FreezeAndReadOut(const ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(FrozenProcess frozen, FrozenProcess::Freeze(process, absl::Seconds(5)));
  const auto answers = ReadOut(frozen, SomeCalls(frozen.threads().size()));
  PREDUMP_RETURN_IF_ERROR(std::move(frozen).Thaw());
  return answers.status();
}

}  // namespace predump::kernel

#endif  // PREDUMP_TESTS_KERNEL_READOUT_CALLS_H_
