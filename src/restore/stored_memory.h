// The memory of a stored process on its way into a landing: the frames a source would have sent,
// with the pages out of image files.
//
// Thread rule: free functions.
#ifndef PREDUMP_RESTORE_STORED_MEMORY_H_
#define PREDUMP_RESTORE_STORED_MEMORY_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/state.pb.h"
#include "src/images/page_chain.h"
#include "src/transport/data_writer.h"

namespace predump::restore::internal {

// The runs of `chain` that are memory of the process in `state` (validated): all but those of the
// vDSO, which is this host's own. DataLoss where pages are stored for an address at which the
// process had no private memory.
absl::StatusOr<std::vector<images::StoredRun>> PrivateRuns(const proto::ProcessState& state,
                                                           const images::PageChain& chain);

// Maps everything private memory and shared files of `state` make up, then sends the pages of
// `runs`, and the mark of the end. Errors: DataLoss a pages file has become shorter; else as
// DataWriter, with the landing's own word where it gave one.
absl::Status SendMemory(const proto::ProcessState& state,
                        const std::vector<images::StoredRun>& runs, transport::DataWriter& data);

// Whether the vDSO stored with the process is, byte for byte, the one this kernel gives: threads
// may stand in it and hold its addresses. NotFound: the images have none.
absl::StatusOr<bool> HasOurVdso(const proto::ProcessState& state, const images::PageChain& chain);

}  // namespace predump::restore::internal

#endif  // PREDUMP_RESTORE_STORED_MEMORY_H_
