// Captured addresses as the kernel takes them.
#ifndef PREDUMP_RESTORE_SOCKET_ADDRESS_H_
#define PREDUMP_RESTORE_SOCKET_ADDRESS_H_

#include <string>

#include "absl/status/statusor.h"
#include "proto/state.pb.h"

namespace predump::restore::internal {

// The bytes of a sockaddr_in or sockaddr_in6.
std::string InetSourceAddress(const criu::inet_sk_entry& socket);
std::string InetPeerAddress(const criu::inet_sk_entry& socket);
// "10.0.0.1:80", "[::]:80".
std::string InetAddressText(const criu::inet_sk_entry& socket);

// The bytes of a sockaddr_un as bind(2) takes them; the name must not be empty.
std::string UnixAddress(const std::string& name);
// "/run/x.sock" or "@abstract".
std::string UnixAddressText(const std::string& name);
inline bool IsAbstract(const std::string& name) { return !name.empty() && name[0] == '\0'; }
// The path of a socket in the file system, without its NUL.
std::string UnixPath(const criu::unix_sk_entry& socket);

// Whether `path` is a socket file nobody listens on, left behind by a process that is gone.
bool IsStaleSocket(const std::string& path);

}  // namespace predump::restore::internal

#endif  // PREDUMP_RESTORE_SOCKET_ADDRESS_H_
