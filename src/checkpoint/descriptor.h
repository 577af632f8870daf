// The descriptors of a process as they are, before anybody asks what they mean.
#ifndef PREDUMP_CHECKPOINT_DESCRIPTOR_H_
#define PREDUMP_CHECKPOINT_DESCRIPTOR_H_

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "src/base/unique_fd.h"
#include "src/kernel/process.h"
#include "src/kernel/procfs.h"

namespace predump::checkpoint {

struct Descriptor {
  int fd = -1;
  std::string link;  // of /proc/PID/fd: "/path", "pipe:[1]", "socket:[2]", "anon_inode:[eventfd]"
  kernel::FdInfo info;
  int64_t info_read_ns = 0;  // CLOCK_MONOTONIC right after
  // Our own descriptor of the same open file. Held only as long as this object: while it lives, a
  // peer would not see the process close the file.
  base::UniqueFd duplicate;
  struct stat stat = {};
  // Index of the first descriptor with the same open file description (dup(2), "2>&1"); its own
  // index where it is the first.
  size_t shares_with = 0;

  std::string name() const;  // "fd 7"
  // open(2) flags of the description, without O_CLOEXEC.
  uint32_t flags() const;
  bool close_on_exec() const;
};

// All descriptors, ascending. A running process may close one meanwhile: it is left out.
// Shared descriptions are found with kcmp(2), which orders as well as compares, so that n
// candidates cost n log n calls; candidates share device, inode and what fdinfo tells of identity.
// Errors: TargetExited; PermissionDenied.
absl::StatusOr<std::vector<Descriptor>> ReadDescriptors(const kernel::ProcessHandle& process);

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_DESCRIPTOR_H_
