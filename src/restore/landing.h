// The process that becomes the migrated one.
//
// Start makes it, with the wanted pid, traced from birth, ready to take data frames from a socket
// (transport/data_format.h) straight into the memory the process will have. Build turns it into
// the process. Whatever happens before Release, nothing of it ever runs: it is killed when a
// Landing or BuiltProcess goes away, and by the kernel when the server dies.
//
// Thread rule: one thread for a landing and what is built from it (ptrace's rule).
#ifndef PREDUMP_RESTORE_LANDING_H_
#define PREDUMP_RESTORE_LANDING_H_

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/state.pb.h"
#include "src/base/unique_fd.h"
#include "src/restore/built_process.h"

namespace predump::restore {

struct LandingOptions {
  pid_t pid = 0;  // wanted, in the innermost pid namespace
  // The process gets a pid namespace of its own, whose init is the reaper.
  bool new_pid_namespace = false;
  // Connected stream socket on which data frames come in and acknowledgements go out.
  base::UniqueFd data_socket;
  // Offsets of a time namespace to the host's clocks; none is made where both are absent.
  std::optional<int64_t> monotonic_offset_ns;
  std::optional<int64_t> boottime_offset_ns;
  std::string cgroup_path;  // directory of a cgroup v2; empty: the server's own
  bool shell_job = false;   // stays in the server's session and has its terminal
};

class Landing {
 public:
  // Errors: AlreadyExists the pid is taken on this host; else what failed, in words.
  static absl::StatusOr<Landing> Start(LandingOptions options);

  Landing(Landing&&) noexcept;
  Landing& operator=(Landing&&) noexcept;
  ~Landing();  // kills it and its reaper unless it was built

  // As our pid namespace numbers it.
  pid_t outer_pid() const;

  // Waits until the landing has acknowledged the final mark and stopped.
  // `extra_fd` (-1: none) is watched as well. Errors: DeadlineExceeded; Cancelled `extra_fd` has
  // become readable or has ended; Aborted the landing gave up, with its reason.
  absl::Status WaitForFinal(absl::Time deadline, int extra_fd);

  // Payload bytes received so far.
  uint64_t received_bytes() const;

  // Turns the landing into the process `state` describes, stopped before its first instruction.
  // Call after WaitForFinal. On an error nothing is left of it. Errors name what could not be
  // done, with its path or address and errno; InvalidArgument and DataLoss for a state that makes
  // no sense.
  absl::StatusOr<BuiltProcess> Build(const proto::ProcessState& state) &&;

 private:
  explicit Landing(std::unique_ptr<internal::LandingProcess> process);
  std::unique_ptr<internal::LandingProcess> process_;
};

}  // namespace predump::restore

#endif  // PREDUMP_RESTORE_LANDING_H_
