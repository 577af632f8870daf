// Brings a stored process to life: an image directory, predump's own or CRIU's, into a running one.
//
//   read and check  ->  landing  ->  memory  ->  build  ->  let go
//
// Until it is let go nothing of it runs, and whatever ends us before that, SIGKILL included, ends
// what was made; while it is let go, it leaves the process whole, stopped or running.
// Thread rule: one thread (ptrace's rule).
#ifndef PREDUMP_RESTORE_IMAGE_RESTORE_H_
#define PREDUMP_RESTORE_IMAGE_RESTORE_H_

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/session.pb.h"

namespace predump::restore {

struct ImageRestoreOptions {
  std::string images_directory;  // a store or an image directory
  bool new_pid_namespace = false;
  bool shell_job = false;
  std::string cgroup_path;   // directory of a cgroup v2; empty: our own
  std::string pidfile_path;  // gets the pid, as our pid namespace numbers it; empty: none
  // What of the host that a process was captured on keeps it from this one. Not asked for images of
  // CRIU's making, which do not say what that host was like: of those the vDSO is compared, and the
  // processor state in use.
  std::function<std::vector<proto::Blocker>(const proto::HostFacts& captured_on)> compare_hosts;
};

struct ImageRestoreReport {
  std::vector<proto::Blocker> blockers;  // not empty: refused, and nothing was made
  pid_t pid = 0;                         // as our pid namespace numbers it
  pid_t reaper = 0;                      // its parent, a child of ours
  uint64_t pages = 0;                    // put in place
  absl::Duration loading;                // from the start of the landing to the last page
  absl::Duration building;               // from there until it ran
};

// OK without blockers: the process runs. An error, or blockers: nothing of it runs, and nothing is
// left of it.
absl::StatusOr<ImageRestoreReport> RestoreImages(const ImageRestoreOptions& options);

// Waits for the end of a restored process. Its exit code, or 128 and the number of the signal that
// ended it.
absl::StatusOr<int> WaitForRestored(pid_t reaper);

}  // namespace predump::restore

#endif  // PREDUMP_RESTORE_IMAGE_RESTORE_H_
