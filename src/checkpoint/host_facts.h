// What a host must be like for a process of another host to go on there.
//
// Thread rule: free functions.
#ifndef PREDUMP_CHECKPOINT_HOST_FACTS_H_
#define PREDUMP_CHECKPOINT_HOST_FACTS_H_

#include <vector>

#include "absl/status/statusor.h"
#include "proto/session.pb.h"

namespace predump::checkpoint {

// Facts of this machine: kernel, processor, vDSO (hashed from our own mapping of it, which is what
// every 64-bit process here has), and its clocks outside any time namespace, read last.
absl::StatusOr<proto::HostFacts> ReadHostFacts();

// What to call the two hosts when speaking to a person, who sits at one of them.
struct HostNames {
  const char* source = "here";
  const char* target = "at the target";
};

// Why a process of `source` cannot go on at `target`; empty when it can. Another kernel release is
// no obstacle by itself, another vDSO is: threads may stand in it and hold its addresses.
std::vector<proto::Blocker> CompareHosts(const proto::HostFacts& source,
                                         const proto::HostFacts& target,
                                         const HostNames& names = {});

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_HOST_FACTS_H_
