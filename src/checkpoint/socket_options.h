// Options of a socket, read through a duplicate of its descriptor.
#ifndef PREDUMP_CHECKPOINT_SOCKET_OPTIONS_H_
#define PREDUMP_CHECKPOINT_SOCKET_OPTIONS_H_

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/state.pb.h"

namespace predump::checkpoint {

struct SocketKind {
  int family = 0;
  int type = 0;
  int protocol = 0;
};

absl::StatusOr<SocketKind> ReadSocketKind(int socket);
// An integer option; errors: getsockopt(2).
absl::StatusOr<int> ReadIntOption(int socket, int level, int name);

// The options every family has.
absl::Status FillCommonOptions(int socket, criu::sk_opts_entry& options);
// Those of TCP and IP that CRIU's messages have fields for.
absl::Status FillInetOptions(int socket, const SocketKind& kind, criu::inet_sk_entry& entry);

// Options without a field in CRIU's messages whose value differs from that of `fresh`, a new socket
// of the same kind: to be set raw, right after the socket was made.
void FillOtherOptions(int socket, int fresh, const SocketKind& kind, proto::FileExtra& extra);

// Why the socket cannot move on account of something attached to it (a packet filter, an upper
// layer protocol), nullopt when nothing is.
std::optional<std::string> WhyAttachmentsStay(int socket, const SocketKind& kind);

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_SOCKET_OPTIONS_H_
