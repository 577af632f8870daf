// Which thread of a running process a program is run in: one that a stop disturbs little.
//
// Thread rule: free functions.
#ifndef PREDUMP_KERNEL_THREAD_CHOICE_H_
#define PREDUMP_KERNEL_THREAD_CHOICE_H_

#include <sys/types.h>

#include <vector>

#include "absl/status/statusor.h"
#include "src/base/units.h"
#include "src/kernel/process.h"

namespace predump::kernel {

struct ThreadChoice {
  std::vector<pid_t> tids;  // those that can be stopped now, best first
  // A thread that waits for children of all kinds (__WALL), and would be told of any child made.
  pid_t waits_for_all_kinds = 0;
};

// Looks at the first threads of many. Errors: TargetExited; FailedPrecondition: every thread has a
// seccomp filter, or one has not left a program in `padding`, of an engine that died.
absl::StatusOr<ThreadChoice> ChooseThreads(const ProcessHandle& process,
                                           base::AddressRange padding);

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_THREAD_CHOICE_H_
