// All that /proc says of a process, as text by key: to prove that before and after are the same.
#ifndef PREDUMP_TESTS_SUPPORT_PROC_SNAPSHOT_H_
#define PREDUMP_TESTS_SUPPORT_PROC_SNAPSHOT_H_

#include <sys/types.h>

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace predump::test_support {

// What Diff() leaves out.
struct DiffOptions {
  // The process ran in between: file positions, pending signals and timers' remaining times move
  // on, and its heap and stack may have grown.
  bool ran_between = false;
  // It is another process with the same pid elsewhere: parents, tracers' traces, inode numbers of
  // pipes and sockets, namespace-dependent ids and clocks differ rightly.
  bool moved = false;
  // Keys that begin with one of these.
  std::vector<std::string> ignored_prefixes = {};
};

// Keys, each with its value as /proc writes it:
//   maps/START-END        permissions, offset, device, inode, name
//   vmflags/START-END     smaps' VmFlags (carries `uw` and `um` of userfaultfd)
//   fd/N                  link target
//   fdinfo/N/FIELD        pos, flags, mnt_id, ... (repeated fields are joined)
//   status/FIELD          of the process, but for sizes, switch counts and the like
//   task/TID/status/FIELD the same per thread, task/TID/comm
//   task/TID/children     pids
//   timers                POSIX timers
//   link/NAME             exe, cwd, root;  ns/NAME;  cmdline, oom_score_adj, limits/LINE, auxv
class ProcSnapshot {
 public:
  // The process may run meanwhile; what vanishes under the reading is left out. NotFound: no such
  // process. PermissionDenied: not enough privilege to see all of it.
  static absl::StatusOr<ProcSnapshot> Take(pid_t pid);

  // "key: before -> after" for each difference; "(none)" where a key is missing.
  std::vector<std::string> Diff(const ProcSnapshot& after, const DiffOptions& options = {}) const;

  const std::map<std::string, std::string>& entries() const { return entries_; }

 private:
  std::map<std::string, std::string> entries_;
};

}  // namespace predump::test_support

#endif  // PREDUMP_TESTS_SUPPORT_PROC_SNAPSHOT_H_
