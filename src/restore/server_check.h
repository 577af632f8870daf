// What a restored process would have from the page server that makes it, and could not be rid of.
//
// Everything else that children inherit is shed when the landing is born (birth.cc).
// Thread rule: free functions; they ask about the calling process.
#ifndef PREDUMP_RESTORE_SERVER_CHECK_H_
#define PREDUMP_RESTORE_SERVER_CHECK_H_

#include "absl/status/status.h"
#include "proto/state.pb.h"
#include "src/restore/blockers.h"

namespace predump::restore::internal {

// `preview` is the state of a process before its freeze. Errors only where we cannot be asked.
absl::Status FindServerBlockers(const proto::ProcessState& preview, Blockers& blockers);

}  // namespace predump::restore::internal

#endif  // PREDUMP_RESTORE_SERVER_CHECK_H_
