#include "src/transport/socket.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/tcp.h>  // the whole of tcp_info, which <netinet/tcp.h> cuts short
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"

namespace predump::transport {
namespace {

constexpr int kListenBacklog = 128;
// Probes per peer_timeout while a connection is idle.
constexpr int kKeepaliveProbes = 3;

absl::Status SetIntOption(int fd, int level, int name, int value, absl::string_view what) {
  if (::setsockopt(fd, level, name, &value, sizeof value) != 0) {
    return base::ErrnoError(errno, "setsockopt ", what);
  }
  return absl::OkStatus();
}

absl::StatusOr<base::UniqueFd> NewSocket(const SocketAddress& address) {
  base::UniqueFd fd(::socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return base::ErrnoError(errno, "socket for ", address.ToString());
  return fd;
}

absl::StatusOr<base::UniqueFd> ConnectOne(const SocketAddress& address,
                                          const SocketOptions& options, Deadline deadline) {
  const std::string operation = absl::StrCat("connect to ", address.ToString());
  PREDUMP_ASSIGN_OR_RETURN(base::UniqueFd fd, NewSocket(address));
  PREDUMP_RETURN_IF_ERROR(ApplyOptions(fd.get(), options));
  if (::connect(fd.get(), address.native(), address.length()) != 0) {
    if (errno != EINPROGRESS) return base::ErrnoError(errno, operation);
    PREDUMP_ASSIGN_OR_RETURN(const WaitResult result, WaitFor(fd.get(), POLLOUT, deadline));
    if (result == WaitResult::kDeadline) {
      return absl::DeadlineExceededError(absl::StrCat(operation, ": no answer"));
    }
    int error = 0;
    socklen_t length = sizeof error;
    if (::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &length) != 0) {
      return base::ErrnoError(errno, "getsockopt SO_ERROR");
    }
    if (error != 0) return base::ErrnoError(error, operation);
  }
  PREDUMP_RETURN_IF_ERROR(SetBlocking(fd.get(), true));
  return fd;
}

}  // namespace

absl::Status ApplyOptions(int fd, const SocketOptions& options) {
  if (options.peer_timeout < absl::Seconds(1) || options.peer_timeout > absl::Hours(1)) {
    return absl::InvalidArgumentError("the peer timeout must lie between a second and an hour");
  }
  if (!options.congestion.empty() &&
      ::setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, options.congestion.data(),
                   static_cast<socklen_t>(options.congestion.size())) != 0) {
    if (errno == ENOENT) {
      return absl::InvalidArgumentError(
          absl::StrCat("this kernel has no congestion control called \"", options.congestion,
                       "\" (see net.ipv4.tcp_available_congestion_control)"));
    }
    return base::ErrnoError(errno, "setsockopt TCP_CONGESTION ", options.congestion);
  }
  const auto timeout_ms = static_cast<int>(absl::ToInt64Milliseconds(options.peer_timeout));
  const int probe_seconds = std::max(1, timeout_ms / 1000 / (kKeepaliveProbes + 1));
  PREDUMP_RETURN_IF_ERROR(SetIntOption(fd, IPPROTO_TCP, TCP_NODELAY, 1, "TCP_NODELAY"));
  PREDUMP_RETURN_IF_ERROR(SetIntOption(fd, SOL_SOCKET, SO_KEEPALIVE, 1, "SO_KEEPALIVE"));
  PREDUMP_RETURN_IF_ERROR(
      SetIntOption(fd, IPPROTO_TCP, TCP_KEEPIDLE, probe_seconds, "TCP_KEEPIDLE"));
  PREDUMP_RETURN_IF_ERROR(
      SetIntOption(fd, IPPROTO_TCP, TCP_KEEPINTVL, probe_seconds, "TCP_KEEPINTVL"));
  PREDUMP_RETURN_IF_ERROR(
      SetIntOption(fd, IPPROTO_TCP, TCP_KEEPCNT, kKeepaliveProbes, "TCP_KEEPCNT"));
  return SetIntOption(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, timeout_ms, "TCP_USER_TIMEOUT");
}

absl::StatusOr<base::UniqueFd> Connect(const Address& address, const SocketOptions& options,
                                       Deadline deadline) {
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<SocketAddress> candidates, address.Resolve());
  absl::Status last;
  for (const SocketAddress& candidate : candidates) {
    absl::StatusOr<base::UniqueFd> fd = ConnectOne(candidate, options, deadline);
    if (fd.ok()) return fd;
    last = fd.status();
    // Neither of these gets better with another address.
    if (absl::IsInvalidArgument(last) || absl::IsDeadlineExceeded(last)) break;
  }
  return last;
}

absl::StatusOr<Listener> Listen(const Address& address) {
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<SocketAddress> candidates, address.Resolve());
  const SocketAddress& wanted = candidates.front();
  PREDUMP_ASSIGN_OR_RETURN(base::UniqueFd fd, NewSocket(wanted));
  // A server started again must not wait for the connections of the one before to fade.
  PREDUMP_RETURN_IF_ERROR(SetIntOption(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR"));
  if (::bind(fd.get(), wanted.native(), wanted.length()) != 0) {
    return base::ErrnoError(errno, "bind ", wanted.ToString());
  }
  if (::listen(fd.get(), kListenBacklog) != 0) {
    return base::ErrnoError(errno, "listen on ", wanted.ToString());
  }
  sockaddr_storage bound = {};
  socklen_t length = sizeof bound;
  if (::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&bound), &length) != 0) {
    return base::ErrnoError(errno, "getsockname of ", wanted.ToString());
  }
  PREDUMP_ASSIGN_OR_RETURN(
      const SocketAddress real,
      SocketAddress::FromNative(reinterpret_cast<const sockaddr*>(&bound), length));
  return Listener{std::move(fd), real};
}

absl::StatusOr<AcceptedConnection> Accept(int listening_fd) {
  sockaddr_storage peer = {};
  socklen_t length = sizeof peer;
  base::UniqueFd fd;
  for (;;) {
    fd = base::UniqueFd(::accept4(listening_fd, reinterpret_cast<sockaddr*>(&peer), &length,
                                  SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (fd.valid()) break;
    switch (errno) {
      case EINTR:
        continue;
      // accept(2): errors of the new connection itself; the next one may be well.
      case ECONNABORTED:
      case ENETDOWN:
      case EPROTO:
      case ENOPROTOOPT:
      case EHOSTDOWN:
      case EHOSTUNREACH:
      case EOPNOTSUPP:
      case ENETUNREACH:
        length = sizeof peer;
        continue;
      case EAGAIN:
        return absl::UnavailableError("no connection is waiting");
      case EMFILE:
      case ENFILE:
      case ENOMEM:
      case ENOBUFS:
        return absl::ResourceExhaustedError(
            base::ErrnoError(errno, "accept a connection").message());
      default:
        return base::ErrnoError(errno, "accept a connection");
    }
  }
  PREDUMP_ASSIGN_OR_RETURN(
      const SocketAddress address,
      SocketAddress::FromNative(reinterpret_cast<const sockaddr*>(&peer), length));
  return AcceptedConnection{std::move(fd), address};
}

absl::Status SetSendTimeout(int fd, absl::Duration timeout) {
  const timeval value = absl::ToTimeval(timeout);
  if (::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &value, sizeof value) != 0) {
    return base::ErrnoError(errno, "setsockopt SO_SNDTIMEO");
  }
  return absl::OkStatus();
}

absl::Duration RoundTrip(int fd) {
  tcp_info info = {};
  socklen_t length = sizeof info;
  // Kernels before 4.9 fill less of it; what is not a TCP socket, nothing.
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) != 0) return absl::ZeroDuration();
  // ~0 until a segment of ours was acknowledged.
  if (info.tcpi_min_rtt == ~0u) return absl::ZeroDuration();
  return absl::Microseconds(info.tcpi_min_rtt);
}

absl::Status SetBlocking(int fd, bool blocking) {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0) return base::ErrnoError(errno, "fcntl F_GETFL");
  const int wanted = blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK;
  if (::fcntl(fd, F_SETFL, wanted) != 0) return base::ErrnoError(errno, "fcntl F_SETFL");
  return absl::OkStatus();
}

absl::StatusOr<WaitResult> WaitFor(int fd, short events, Deadline deadline, int other_fd) {
  pollfd fds[2] = {{fd, events, 0}, {other_fd, POLLIN, 0}};
  for (;;) {
    timespec timeout = {};
    if (!deadline.never()) timeout = absl::ToTimespec(deadline.Remaining());
    const int ready =
        ::ppoll(fds, other_fd >= 0 ? 2 : 1, deadline.never() ? nullptr : &timeout, nullptr);
    if (ready < 0 && errno == EINTR) continue;
    if (ready < 0) return base::ErrnoError(errno, "ppoll");
    if (ready == 0) return WaitResult::kDeadline;
    return fds[1].revents != 0 ? WaitResult::kOther : WaitResult::kReady;
  }
}

}  // namespace predump::transport
