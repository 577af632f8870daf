// Attributes of a process that do not move.
#ifndef PREDUMP_CHECKPOINT_ATTRIBUTE_CHECK_H_
#define PREDUMP_CHECKPOINT_ATTRIBUTE_CHECK_H_

#include <cstdint>

#include "absl/status/status.h"
#include "src/checkpoint/blocker_list.h"
#include "src/checkpoint/capture.h"
#include "src/kernel/bpf/task_capture.h"
#include "src/kernel/process.h"
#include "src/kernel/procfs.h"

namespace predump::checkpoint {

// ThreadRecord::thread_flags: TIF_NOCPUID and TIF_NOTSC of arch/x86/include/asm/thread_info.h, up
// to 6.17 and since. Where the other layout has another flag, that is one of a dying or an idle
// task, or of speculation control, which is refused as well.
inline constexpr uint64_t kNoCpuid = 1 << 15 | 1 << 20;
inline constexpr uint64_t kNoTimeStampCounter = 1 << 16 | 1 << 21;

// What the kernel's own record of the process tells: cheap enough for a frozen process.
void RefuseKernelState(const kernel::TaskSnapshot& snapshot, BlockerList& blockers);

// Children, which may be gone in a moment, and tables that threads do not share with each other
// (unshare(2) of one thread). Both can change up to the freeze. Frozen or not.
absl::Status RefuseRelations(const kernel::ProcessHandle& process,
                             const kernel::TaskSnapshot& snapshot, BlockerList& blockers,
                             BlockerList& children_as_blockers);

// NUMA policies as /proc/PID/numa_maps shows them, of its mappings and its first thread: for where
// there is no BPF. The kernel walks all pages for it.
absl::Status RefuseMemoryPolicies(const kernel::ProcessHandle& process, BlockerList& blockers);

// Everything else: namespaces, tracers, security labels, terminal, architecture. Milliseconds; what
// it looks at does not change behind a running migration's back.
absl::Status RefuseSurroundings(const kernel::ProcessHandle& process,
                                const kernel::StatusFields& status, const kernel::StatFields& stat,
                                const CaptureOptions& options, BlockerList& blockers);

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_ATTRIBUTE_CHECK_H_
