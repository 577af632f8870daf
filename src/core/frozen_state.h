// What the notes of a core file tell of a process, read while all its threads stand still.
//
// Nothing here asks whether the process could be moved: only register sets, /proc, and memory.
// Thread rule: the thread that froze the process (ptrace's rule).
#ifndef PREDUMP_CORE_FROZEN_STATE_H_
#define PREDUMP_CORE_FROZEN_STATE_H_

#include <sys/procfs.h>
#include <sys/types.h>

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "src/base/units.h"
#include "src/kernel/freezer.h"
#include "src/kernel/process.h"
#include "src/kernel/procfs.h"

namespace predump::core {

// Bytes of the process that were taken at a moment of their own.
struct MemoryCopy {
  base::AddressRange range;  // whole pages
  std::vector<std::byte> bytes;
};

struct ThreadState {
  elf_prstatus status = {};
  std::vector<std::byte> xstate;  // NT_X86_XSTATE; its first 512 bytes are NT_FPREGSET
};

struct FrozenState {
  std::vector<ThreadState> threads;
  elf_prpsinfo process = {};
  std::string auxv;
  std::vector<kernel::MapsEntry> mappings;
  std::vector<MemoryCopy> stacks;  // ascending, disjoint
};

// The ends of threads' stacks that are copied under the freeze, so that backtraces fit registers
// although the rest is copied while the process runs on: so much of each, and of all together.
inline constexpr base::ByteCount kStackOfOneThread{64 << 10};
inline constexpr base::ByteCount kStackOfAllThreads{8 << 20};

// What is as good when read before the freeze: identity, names, state.
absl::StatusOr<elf_prpsinfo> ReadProcessInfo(const kernel::ProcessHandle& process);

struct StateRequest {
  std::optional<pid_t> first_thread;  // unset: the leader
  bool stacks = true;
};

// Errors: TargetExited; NotFound `first_thread` is none of its threads; Unimplemented a 32-bit
// process; else from ptrace(2) and /proc.
absl::StatusOr<FrozenState> ReadFrozenState(kernel::FrozenProcess& frozen,
                                            const StateRequest& request);

}  // namespace predump::core

#endif  // PREDUMP_CORE_FROZEN_STATE_H_
