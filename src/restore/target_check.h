// Whether a process may come to this host: asked before anything at the source is touched.
//
// Thread rule: free functions; they look and try, and leave nothing behind.
#ifndef PREDUMP_RESTORE_TARGET_CHECK_H_
#define PREDUMP_RESTORE_TARGET_CHECK_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/session.pb.h"
#include "proto/state.pb.h"

namespace predump::restore {

struct TargetCheckOptions {
  bool new_pid_namespace = false;
  bool shell_job = false;        // the server has a terminal to give
  std::string cgroup_path = {};  // as LandingOptions
  // How long to wait for a number whose bearers have ended and only need to be reaped.
  absl::Duration pid_patience = absl::Seconds(5);
};

// Everything that keeps the process of `begin` (validated) from this host: pids taken, files
// missing or others than at the source (kind, mode, size, build-id) or not to be written, addresses
// in use, options of sockets, memory, processors, limits, capabilities, this kernel, cgroup,
// terminal, and what the server itself is confined by (server_check.h). Empty: it may come. Errors
// only where the host cannot be asked.
absl::StatusOr<std::vector<proto::Blocker>> FindTargetBlockers(const proto::Begin& begin,
                                                               const TargetCheckOptions& options);

// Whether it is too large to be built on any host: it had better not be stored either.
void FindRoomBlockers(const proto::ProcessState& preview, std::vector<proto::Blocker>& blockers);

// The files alone, again, right before the process is built: they may have changed since Begin.
absl::StatusOr<std::vector<proto::Blocker>> RecheckFiles(const proto::ProcessState& state);

}  // namespace predump::restore

#endif  // PREDUMP_RESTORE_TARGET_CHECK_H_
