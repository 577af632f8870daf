// Makes one mapping of what was one at the source.
//
// The landing keeps contents across changes of the layout piece by piece. Where a mapping of the
// process covers what came from several mappings of earlier rounds, each with pages, the kernel
// cannot merge them (each has an anon_vma of its own), and the process would meet EFAULT from an
// mremap(2) of the whole.
//
//   round 1:  [ A, pages ]      [ B, pages ]
//   freeze:   [ one mapping ............... ]
//   landing:  [ A + what is new ][ B ....... ]   (made anew: all but the largest piece)
#ifndef PREDUMP_RESTORE_MAPPING_JOIN_H_
#define PREDUMP_RESTORE_MAPPING_JOIN_H_

#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/state.pb.h"
#include "src/restore/landing_process.h"

namespace predump::restore::internal {

// Where nothing of the landing or the process is, for so many bytes.
using FindFreeRange = std::function<absl::StatusOr<uint64_t>(uint64_t bytes)>;

// To be called while the landing's image is still there. Private anonymous mappings only; one that
// reaches into the landing's home block is left as it is, for it is not in place yet. Costs one
// reading of /proc/PID/maps where all is well. What it had to touch has its final protection.
absl::Status JoinMappings(LandingProcess& process, const proto::ProcessState& state,
                          const FindFreeRange& find_free);

}  // namespace predump::restore::internal

#endif  // PREDUMP_RESTORE_MAPPING_JOIN_H_
