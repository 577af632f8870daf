// Whether a state that came from a peer may be acted upon.
//
// Everything a restorer would use to size, index, open, map or set something is checked here once:
// counts, lengths, ranges, duplicates, references between the parts. What passes may still fail at
// the target (a file that is not there); it cannot lead the restorer astray.
// Thread rule: pure.
#ifndef PREDUMP_IMAGES_STATE_VALIDATION_H_
#define PREDUMP_IMAGES_STATE_VALIDATION_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "proto/state.pb.h"

namespace predump::images {

// Upper bounds of what a peer may send. Defaults: what the kernel itself allows, or far more than
// any real process has.
struct StateLimits {
  int max_threads = 65536;
  int max_vmas = 1 << 20;
  int max_files = 1 << 20;
  int max_descriptors = 1 << 20;
  uint32_t max_descriptor_number = (1u << 20) * 16;
  int max_signals = 65536;
  int max_epoll_entries = 1 << 20;
  int max_packets = 1 << 20;
  size_t max_queued_bytes = size_t{256} << 20;  // of all pipes and socket queues together
  size_t max_xsave_bytes = 16384;
};

enum class StateKind {
  kPreview,  // of a running process: no registers, signals, extended state
  kFull,     // as captured from a frozen one
  kStored,   // kFull as CRIU's images hold it: registers and extended state only as its messages
};

// OK, or DataLoss naming the first thing that is wrong. Never crashes; time is linear in the size
// of the state.
absl::Status ValidateState(const proto::ProcessState& state, StateKind kind,
                           const StateLimits& limits = {});

}  // namespace predump::images

#endif  // PREDUMP_IMAGES_STATE_VALIDATION_H_
