// Internet and unix sockets.
#ifndef PREDUMP_CHECKPOINT_SOCKET_CAPTURE_H_
#define PREDUMP_CHECKPOINT_SOCKET_CAPTURE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/checkpoint/file_context.h"
#include "src/checkpoint/socket_options.h"

namespace predump::checkpoint {

// Adds the socket behind `descriptor`; returns its id, or 0 with a blocker.
absl::StatusOr<uint32_t> AddSocket(FileContext& context, const Descriptor& descriptor);

// One family each. `kind` has been checked to be TCP or UDP, or unix.
absl::StatusOr<uint32_t> AddInetSocket(FileContext& context, const Descriptor& descriptor,
                                       const SocketKind& kind);
absl::StatusOr<uint32_t> AddUnixSocket(FileContext& context, const Descriptor& descriptor,
                                       const SocketKind& kind);

// After all sockets are there: refuses unix sockets whose peer is not in the process and, frozen,
// copies what waits in their queues, which stays there.
absl::Status FillUnixQueues(FileContext& context);

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_SOCKET_CAPTURE_H_
