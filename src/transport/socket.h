// Stream sockets, set up as a migration needs them.
//
// Thread rule: free functions, safe from any thread.
#ifndef PREDUMP_TRANSPORT_SOCKET_H_
#define PREDUMP_TRANSPORT_SOCKET_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "src/base/unique_fd.h"
#include "src/transport/address.h"
#include "src/transport/deadline.h"

namespace predump::transport {

struct SocketOptions {
  // TCP_CONGESTION by name; empty leaves the system's default. A default that paces (bbr) can cost
  // half the throughput between near hosts.
  std::string congestion;
  // After this long without an answer from the peer's kernel the connection is dead: keepalive
  // probes while idle, TCP_USER_TIMEOUT while data is unacknowledged. Notices a cut cable, which
  // sends no reset. At least one second.
  absl::Duration peer_timeout = absl::Seconds(15);
};

// Connects to the first of `address`'s socket addresses that answers. The result is blocking,
// close-on-exec, TCP_NODELAY. SO_SNDBUF is left alone: setting it turns the kernel's own tuning off
// and is capped at net.core.wmem_max (208 KiB by default), far below what tuning reaches.
// Errors: DeadlineExceeded; Unavailable (refused, unreachable); NotFound (unknown name);
// InvalidArgument (congestion control the kernel does not have). Each names the address.
absl::StatusOr<base::UniqueFd> Connect(const Address& address, const SocketOptions& options,
                                       Deadline deadline);

struct Listener {
  base::UniqueFd fd;      // non-blocking, close-on-exec
  SocketAddress address;  // with the port the kernel chose where 0 was asked for
};

// Listens on the first of `address`'s socket addresses. Errors: from bind(2), with the address.
absl::StatusOr<Listener> Listen(const Address& address);

struct AcceptedConnection {
  base::UniqueFd fd;  // non-blocking, close-on-exec
  SocketAddress peer;
};

// Takes one waiting connection. Errors: Unavailable where none waits any more (look again after the
// next poll); ResourceExhausted where we are out of descriptors; otherwise from accept4(2).
absl::StatusOr<AcceptedConnection> Accept(int listening_fd);

// Applies `options` and TCP_NODELAY to a connected TCP socket.
absl::Status ApplyOptions(int fd, const SocketOptions& options);

// SO_SNDTIMEO: how long a blocking send waits for a peer that takes nothing.
absl::Status SetSendTimeout(int fd, absl::Duration timeout);

// The shortest round trip the kernel has seen on a connected TCP socket; zero where it has seen
// none.
absl::Duration RoundTrip(int fd);

// O_NONBLOCK on or off.
absl::Status SetBlocking(int fd, bool blocking);

// What a wait ended with.
enum class WaitResult {
  kReady,     // `fd` can be read (written), or has an error or an end to report
  kOther,     // `other_fd` can be read
  kDeadline,  // neither, in time
};

// Waits until `fd` is ready for `events` (POLLIN, POLLOUT). With `other_fd` >= 0 also until that
// one can be read, which then comes first. Errors: from ppoll(2).
absl::StatusOr<WaitResult> WaitFor(int fd, short events, Deadline deadline, int other_fd = -1);

}  // namespace predump::transport

#endif  // PREDUMP_TRANSPORT_SOCKET_H_
