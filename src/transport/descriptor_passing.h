// Handing open descriptors to somebody else over a unix socket (SCM_RIGHTS, unix(7)).
//
// A server or relay that is started for one peer gets its connections this way: nothing has a name
// that others could connect to. It says once that it is ready, and from then on takes connections;
// each end notices by the end of the channel that the other has gone.
#ifndef PREDUMP_TRANSPORT_DESCRIPTOR_PASSING_H_
#define PREDUMP_TRANSPORT_DESCRIPTOR_PASSING_H_

#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/base/unique_fd.h"
#include "src/transport/deadline.h"

namespace predump::transport {

// Connected, close-on-exec, non-blocking, keeping messages apart (SOCK_SEQPACKET).
absl::StatusOr<std::pair<base::UniqueFd, base::UniqueFd>> MakeDescriptorChannel();

// Does not wait: Unavailable where the other end is gone or does not take what it was sent.
absl::Status SendDescriptor(int channel, int fd);

// Nothing: none waits. Unavailable: the other end is closed. DataLoss: a message without one.
absl::StatusOr<std::optional<base::UniqueFd>> ReceiveDescriptor(int channel);

// "Connections may come." Unavailable: the other end is closed.
absl::Status SendReady(int channel);

// Waits for that word, or until `stop_fd` (where there is one) can be read: Cancelled. Errors:
// Unavailable the other end closed the channel instead; DeadlineExceeded.
absl::Status AwaitReady(int channel, Deadline deadline, int stop_fd = -1);

}  // namespace predump::transport

#endif  // PREDUMP_TRANSPORT_DESCRIPTOR_PASSING_H_
