// What only a thread itself can be asked, asked while the process stays frozen.
//
// Threads are taken one after the other from their event stop, run a self-finishing program at the
// end of the vDSO's padding, and are put back into the event stop with the registers and the mask
// they had: an interrupted call goes on as if nothing had happened, its restart block untouched. A
// thread inside a restartable sequence comes back at the sequence's abort address (DESIGN 12.6).
//
// I1: no instruction of the application runs, and no signal is delivered, lost or doubled.
// I2: if we die at any instant, the thread finishes the program by itself: it unmaps the scratch
//     pages, puts the mask back and goes on where it was.
// Thread rule: the thread that froze the process.
#ifndef PREDUMP_KERNEL_READOUT_INJECTION_H_
#define PREDUMP_KERNEL_READOUT_INJECTION_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "src/kernel/freezer.h"

namespace predump::kernel {

// A system call that returns at once, changes nothing, and leaves the restart block alone (none
// that sleeps).
struct ReadoutCall {
  uint64_t number = 0;
  std::array<uint64_t, 6> arguments{};
  // The argument that becomes the address of `buffer_bytes` zeroed bytes for the call to fill.
  std::optional<size_t> buffer_argument = std::nullopt;
  size_t buffer_bytes = 0;
  // The argument that becomes the address of a page just mapped and never touched: what the kernel
  // does to new memory by itself (mlockall(2)) shows there.
  std::optional<size_t> new_page_argument = std::nullopt;
};

struct ReadoutAnswer {
  int64_t result = 0;            // as the kernel returns it: -errno for an error
  std::vector<std::byte> bytes;  // buffer_bytes of them
};

// calls[i] for frozen.threads()[i]; a thread without calls is not touched. Answers in the same
// shape. Buffers of one thread sum up to at most a page.
// Errors before anything is touched: FailedPrecondition: stopped by a signal, a thread with a
// seccomp filter or with dispatched system calls, one still inside a program of an engine that
// died, or the padding in use; Unimplemented: 32-bit code, no vDSO or no room in it;
// InvalidArgument: more than a page of buffers. Afterwards: TargetExited; ResourceExhausted and the
// like where the scratch pages cannot be mapped (RLIMIT_AS), the process as it was.
absl::StatusOr<std::vector<std::vector<ReadoutAnswer>>> ReadOut(
    FrozenProcess& frozen, std::span<const std::vector<ReadoutCall>> calls);

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_READOUT_INJECTION_H_
