// The memory that the server and the landing share: the landing's report and staging table, then
// the batches of system calls that turn it into the process.
//
// A memfd: sparse, so its size costs nothing until it is written. Ours to read and write, the
// landing's also to execute. Invariant: what Slice hands out never overlaps.
#ifndef PREDUMP_RESTORE_TRAMPOLINE_H_
#define PREDUMP_RESTORE_TRAMPOLINE_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "src/base/mapped_region.h"
#include "src/base/unique_fd.h"
#include "src/base/units.h"
#include "src/restore/landing/layout.h"

namespace predump::restore::internal {

class Trampoline {
 public:
  // Makes the memory and our view of it. `*fd` gets the descriptor the landing is to map.
  static absl::StatusOr<Trampoline> Create(base::UniqueFd* fd);

  LandingShared& shared() { return *reinterpret_cast<LandingShared*>(region_.data()); }
  const LandingShared& shared() const {
    return *reinterpret_cast<const LandingShared*>(region_.data());
  }

  // Where the landing has it.
  base::RemoteAddress remote() const { return remote_; }
  void set_remote(base::RemoteAddress remote) { remote_ = remote; }

  struct Part {
    base::RemoteAddress remote;
    std::span<std::byte> local;
  };
  // A page-aligned piece nobody else has. ResourceExhausted where there is no room.
  absl::StatusOr<Part> Slice(uint64_t bytes);

 private:
  base::MappedRegion region_;
  base::RemoteAddress remote_{kTrampoline};
  uint64_t used_ = kLandingSharedBytes;
};

}  // namespace predump::restore::internal

#endif  // PREDUMP_RESTORE_TRAMPOLINE_H_
