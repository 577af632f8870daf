// Whether the numbers of a process and its threads are free on this host.
//
// Thread rule: free functions; they ask about the calling process's pid namespace.
#ifndef PREDUMP_RESTORE_PID_CHECK_H_
#define PREDUMP_RESTORE_PID_CHECK_H_

#include "absl/time/time.h"
#include "proto/session.pb.h"
#include "src/restore/blockers.h"

namespace predump::restore::internal {

// A number is taken by any task, and by a process group or a session that has members. One whose
// last bearers have ended is waited for, at most `patience`: the process was stored or moved away a
// moment ago, and its parent has yet to reap it.
void FindTakenPids(const proto::Begin& begin, absl::Duration patience, Blockers& blockers);

}  // namespace predump::restore::internal

#endif  // PREDUMP_RESTORE_PID_CHECK_H_
