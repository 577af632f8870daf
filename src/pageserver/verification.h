// --verify at the target: what the source says of its pages against what was built here.
//
// Thread rule: one thread at a time.
#ifndef PREDUMP_PAGESERVER_VERIFICATION_H_
#define PREDUMP_PAGESERVER_VERIFICATION_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/session.pb.h"
#include "proto/state.pb.h"
#include "src/base/units.h"
#include "src/kernel/process.h"
#include "src/pagemap/page_hash.h"

namespace predump::pageserver {

class Verification {
 public:
  // `state` bounds how many pages a peer may list, and says where the kernel itself writes.
  explicit Verification(const proto::ProcessState& state);

  // Takes one message; true once it was the last. DataLoss for ranges that are out of order, not
  // pages, or more than the process has.
  absl::StatusOr<bool> Add(const proto::Verify& message);

  // Compares with `process`, which does not run.
  absl::StatusOr<proto::VerifyReply> Compare(const kernel::ProcessHandle& process) const;

 private:
  uint64_t pages_allowed_ = 0;
  base::RemoteAddress end_;  // of what was listed so far
  pagemap::ExpectedPages expected_;
  std::vector<base::AddressRange> masked_;
};

}  // namespace predump::pageserver

#endif  // PREDUMP_PAGESERVER_VERIFICATION_H_
