// Where a server's connections come from: a socket that listens, or the channel of one peer.
//
// Thread rule: one thread at a time.
#ifndef PREDUMP_PAGESERVER_ARRIVALS_H_
#define PREDUMP_PAGESERVER_ARRIVALS_H_

#include <optional>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "src/base/unique_fd.h"
#include "src/transport/socket.h"

namespace predump::pageserver {

class Arrivals {
 public:
  static Arrivals Listening(transport::Listener listener) {
    return Arrivals(std::move(listener.fd), "");
  }
  // `peer` is what to call it in messages; not empty.
  static Arrivals HandedOver(base::UniqueFd channel, std::string peer) {
    return Arrivals(std::move(channel), std::move(peer));
  }

  struct Connection {
    base::UniqueFd socket;  // non-blocking
    std::string peer;
  };

  int fd() const { return fd_.get(); }
  bool open() const { return fd_.valid(); }
  void Close() { fd_ = base::UniqueFd(); }

  // The next connection; nothing where none waits. A channel that has ended closes this. Errors:
  // none can be taken now; try again later.
  absl::StatusOr<std::optional<Connection>> Take(const transport::SocketOptions& options) {
    return peer_.empty() ? Accept(options) : TakeHandedOver();
  }

 private:
  Arrivals(base::UniqueFd fd, std::string peer) : fd_(std::move(fd)), peer_(std::move(peer)) {}

  absl::StatusOr<std::optional<Connection>> Accept(const transport::SocketOptions& options);
  absl::StatusOr<std::optional<Connection>> TakeHandedOver();

  base::UniqueFd fd_;
  std::string peer_;  // of connections handed over; else empty
};

}  // namespace predump::pageserver

#endif  // PREDUMP_PAGESERVER_ARRIVALS_H_
