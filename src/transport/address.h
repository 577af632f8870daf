// Where a server listens: HOST:PORT, [IPv6]:PORT; as text and as a socket address.
//
// Thread rule: values; Resolve may block in the system's resolver.
#ifndef PREDUMP_TRANSPORT_ADDRESS_H_
#define PREDUMP_TRANSPORT_ADDRESS_H_

#include <sys/socket.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace predump::transport {

// A socket address as the kernel takes it. Invariant: IPv4 or IPv6.
class SocketAddress {
 public:
  // InvalidArgument for a family that is neither AF_INET nor AF_INET6.
  static absl::StatusOr<SocketAddress> FromNative(const sockaddr* address, socklen_t length);

  const sockaddr* native() const { return reinterpret_cast<const sockaddr*>(&storage_); }
  socklen_t length() const { return length_; }
  int family() const { return storage_.ss_family; }
  uint16_t port() const;
  // 127.0.0.0/8, ::1, and IPv4 loopback written as IPv6.
  bool IsLoopback() const;
  // "192.0.2.1:4000", "[2001:db8::1]:4000".
  std::string ToString() const;

 private:
  sockaddr_storage storage_ = {};
  socklen_t length_ = 0;
};

// What a person wrote: a host name or number, and a port.
class Address {
 public:
  // "host:4000", "192.0.2.1:0", "[::1]:4000". The host may not be empty: an address that means
  // "everywhere" must be written out (0.0.0.0 or [::]). Errors: InvalidArgument saying what is
  // wrong and what is expected.
  static absl::StatusOr<Address> Parse(absl::string_view text);

  const std::string& host() const { return host_; }
  uint16_t port() const { return port_; }
  // The form that Parse reads.
  std::string ToString() const;

  // All addresses the name stands for, in the resolver's order, at least one. Errors: NotFound for
  // an unknown name, Unavailable where the resolver cannot be asked.
  absl::StatusOr<std::vector<SocketAddress>> Resolve() const;

 private:
  std::string host_;
  uint16_t port_ = 0;
};

}  // namespace predump::transport

#endif  // PREDUMP_TRANSPORT_ADDRESS_H_
