// How the landing comes into the world: a reaper that outlives us, and below it a process with the
// wanted pid that cannot run on without us.
//
//   server S --clone3(maybe CLONE_NEWPID)--> reaper R --clone3(set_tid)--> landing L
//
// I1: until S has seized L, L waits on a socket whose other end only S holds: should S die, L sees
//     its end and exits. From the seizing on, PTRACE_O_EXITKILL does the same.
// I2: R holds nothing of S: it executes the landing image in its reaper mode, and exits when the
//     last of its children is gone, with L's exit code, or 128 and the signal that ended L.
#ifndef PREDUMP_RESTORE_BIRTH_H_
#define PREDUMP_RESTORE_BIRTH_H_

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "src/base/unique_fd.h"
#include "src/kernel/ptrace.h"

namespace predump::restore::internal {

struct BirthOptions {
  pid_t pid = 0;  // wanted, in the innermost pid namespace
  bool new_pid_namespace = false;
  bool new_session = true;
  std::optional<int64_t> monotonic_offset_ns;  // time namespace, only where one of these is set
  std::optional<int64_t> boottime_offset_ns;
  std::string cgroup_path;  // empty: ours

  // Borrowed; what the landing finds as its descriptors 0, 1 and 2.
  int data_socket = -1;
  int notify_fd = -1;
  int trampoline_fd = -1;
};

struct Newborn {
  pid_t reaper = 0;
  kernel::Tracee landing;  // at the end of its exec: no instruction of the image has run
};

// Errors: AlreadyExists where the pid is taken; else what failed, in words.
absl::StatusOr<Newborn> GiveBirth(const BirthOptions& options);

}  // namespace predump::restore::internal

#endif  // PREDUMP_RESTORE_BIRTH_H_
