// Handing an open descriptor to another process over a unix socket (SCM_RIGHTS, unix(7)).
#ifndef PREDUMP_PAGESERVER_DESCRIPTOR_PASSING_H_
#define PREDUMP_PAGESERVER_DESCRIPTOR_PASSING_H_

#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/base/unique_fd.h"

namespace predump::pageserver {

// Connected, close-on-exec, non-blocking, keeping messages apart (SOCK_SEQPACKET).
absl::StatusOr<std::pair<base::UniqueFd, base::UniqueFd>> MakeDescriptorChannel();

// Does not wait: Unavailable where the other end is gone or does not take what it was sent.
absl::Status SendDescriptor(int channel, int fd);

// Nothing: none waits. Unavailable: the other end is closed. DataLoss: a message without one.
absl::StatusOr<std::optional<base::UniqueFd>> ReceiveDescriptor(int channel);

}  // namespace predump::pageserver

#endif  // PREDUMP_PAGESERVER_DESCRIPTOR_PASSING_H_
