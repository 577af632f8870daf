// Several connections over one pair of pipes, such as those of ssh.
//
// A relay stands at each end. At the opening one, sockets handed over through its channel
// (descriptor_passing.h) become streams; the accepting one hands the other ends of them to whom
// it works for, through its own. Data passes in both directions with their half-closes, each stream
// at the pace of its reader. A relay that hears nothing of the other one takes it for gone.
//
// Thread rule: RunRelay belongs to one thread (or process), which does nothing else.
#ifndef PREDUMP_TRANSPORT_RELAY_H_
#define PREDUMP_TRANSPORT_RELAY_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "src/base/unique_fd.h"

namespace predump::transport {

enum class RelaySide {
  kOpening,    // says on its channel when the other relay has answered; sockets come from there
  kAccepting,  // waits on its channel for the word that connections may come, and hands them over
};

struct RelayEnds {
  base::UniqueFd in;  // pipes or sockets, perhaps one and the same socket
  base::UniqueFd out;
  base::UniqueFd channel;
};

struct RelayOptions {
  uint32_t window_bytes = 4u << 20;  // of each stream, in memory, while its reader stalls
  size_t max_streams = 16;
  // How often something is sent at least, and after how long without anything the other relay
  // counts as gone. It is a program's answer that is awaited, not a kernel's: be patient.
  absl::Duration heartbeat = absl::Seconds(5);
  absl::Duration silence_limit = absl::Seconds(30);
  // How long what is under way may take to be delivered once one of the ends has closed.
  absl::Duration end_limit = absl::Seconds(5);
};

// Relays until the channel or the pipes have ended and what was under way is delivered. OK: in good
// order. Errors: Unavailable the other relay is gone, or did not answer; DataLoss it sends what no
// relay sends; FailedPrecondition it is of another version. Whatever is returned, every stream has
// ended for its local socket.
absl::Status RunRelay(RelaySide side, RelayEnds ends, const RelayOptions& options = {});

}  // namespace predump::transport

#endif  // PREDUMP_TRANSPORT_RELAY_H_
