// Options of a socket, read through a duplicate of its descriptor.
#ifndef PREDUMP_CHECKPOINT_SOCKET_OPTIONS_H_
#define PREDUMP_CHECKPOINT_SOCKET_OPTIONS_H_

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/state.pb.h"
#include "src/base/unique_fd.h"

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

// What new sockets have: asked once for each kind and option.
class FreshOptions {
 public:
  // Empty where the kind has no such option.
  const std::string& Value(const SocketKind& kind, int level, int name);

 private:
  std::map<std::array<int, 3>, base::UniqueFd> sockets_;
  std::map<std::array<int, 5>, std::string> values_;
};

// Options without a field in CRIU's messages whose value differs from that of a new socket of the
// same kind: to be set raw, before it is bound. `state` as in inet_sk_entry; extra.tcp_closed()
// where a connection has changed what is read now.
void FillOtherOptions(int socket, FreshOptions& fresh, const SocketKind& kind, uint32_t state,
                      proto::FileExtra& extra);

// Why the socket cannot move on account of something attached to it (a packet filter, an upper
// layer protocol) or an option that means this host, nullopt when there is nothing.
std::optional<std::string> WhyAttachmentsStay(int socket, const SocketKind& kind);

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_SOCKET_OPTIONS_H_
