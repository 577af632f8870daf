// Which process of which boot, in words that can be kept in a file: a pid alone says nothing.
//
// Thread rule: everything here may run in any thread.
#ifndef PREDUMP_KERNEL_PROCESS_IDENTITY_H_
#define PREDUMP_KERNEL_PROCESS_IDENTITY_H_

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "src/kernel/process.h"

namespace predump::kernel {

// Identity of this boot of the host (/proc/sys/kernel/random/boot_id).
absl::StatusOr<std::string> ReadBootId();

// Inode of our own pid namespace: numbers of processes mean nothing outside it.
absl::StatusOr<uint64_t> OwnPidNamespace();

struct ProcessIdentity {
  pid_t pid = 0;
  uint64_t start_time_ticks = 0;
  std::string boot_id;
  uint64_t pid_namespace = 0;  // of whoever wrote `pid` down; 0: it did not say

  static absl::StatusOr<ProcessIdentity> Of(const ProcessHandle& process);
};

// That process, if it still is: nothing where it has exited (its pid may be another's by now) or
// the host was restarted. FailedPrecondition: it was written down in another pid namespace, so that
// its number tells us nothing, not even that it is gone.
absl::StatusOr<std::optional<ProcessHandle>> FindProcess(const ProcessIdentity& identity);

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_PROCESS_IDENTITY_H_
