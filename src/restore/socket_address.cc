#include "src/restore/socket_address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <cstddef>

#include "absl/strings/str_cat.h"
#include "src/base/unique_fd.h"

namespace predump::restore::internal {
namespace {

template <typename Words>
std::string Address(const criu::inet_sk_entry& socket, const Words& words, uint32_t port) {
  if (socket.family() == AF_INET6) {
    sockaddr_in6 address = {};
    address.sin6_family = AF_INET6;
    address.sin6_port = htons(static_cast<uint16_t>(port));
    for (int i = 0; i < std::min(4, words.size()); ++i) {
      const uint32_t word = words.Get(i);
      ::memcpy(reinterpret_cast<char*>(&address.sin6_addr) + 4 * i, &word, 4);
    }
    return std::string(reinterpret_cast<const char*>(&address), sizeof(address));
  }
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  if (words.size() > 0) address.sin_addr.s_addr = words.Get(0);
  return std::string(reinterpret_cast<const char*>(&address), sizeof(address));
}

}  // namespace

std::string InetSourceAddress(const criu::inet_sk_entry& socket) {
  return Address(socket, socket.src_addr(), socket.src_port());
}

std::string InetPeerAddress(const criu::inet_sk_entry& socket) {
  return Address(socket, socket.dst_addr(), socket.dst_port());
}

std::string InetAddressText(const criu::inet_sk_entry& socket) {
  const std::string bytes = InetSourceAddress(socket);
  char text[INET6_ADDRSTRLEN] = "?";
  if (socket.family() == AF_INET6) {
    sockaddr_in6 address;
    ::memcpy(&address, bytes.data(), sizeof(address));
    ::inet_ntop(AF_INET6, &address.sin6_addr, text, sizeof(text));
    return absl::StrCat("[", text, "]:", socket.src_port());
  }
  sockaddr_in address;
  ::memcpy(&address, bytes.data(), sizeof(address));
  ::inet_ntop(AF_INET, &address.sin_addr, text, sizeof(text));
  return absl::StrCat(text, ":", socket.src_port());
}

std::string UnixAddress(const std::string& name) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  const size_t bytes = std::min(name.size(), sizeof(address.sun_path));
  ::memcpy(address.sun_path, name.data(), bytes);
  return std::string(reinterpret_cast<const char*>(&address),
                     offsetof(sockaddr_un, sun_path) + bytes);
}

std::string UnixAddressText(const std::string& name) {
  if (IsAbstract(name)) return absl::StrCat("@", name.substr(1));
  return std::string(name.c_str());
}

std::string UnixPath(const criu::unix_sk_entry& socket) {
  std::string path(socket.name().c_str());
  if (!path.empty() && path[0] != '/' && !socket.name_dir().empty()) {
    return absl::StrCat(socket.name_dir(), "/", path);
  }
  return path;
}

bool IsStaleSocket(const std::string& path) {
  struct stat info;
  if (path.size() >= sizeof(sockaddr_un::sun_path) || ::lstat(path.c_str(), &info) != 0 ||
      !S_ISSOCK(info.st_mode)) {
    return false;
  }
  const std::string address = UnixAddress(path);
  // A datagram socket connects to nothing that anybody could see: a live socket of another type
  // answers EPROTOTYPE, and only a refusal means that nobody has it.
  const base::UniqueFd probe(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!probe.valid()) return false;
  return ::connect(probe.get(), reinterpret_cast<const sockaddr*>(address.data()),
                   static_cast<socklen_t>(address.size())) != 0 &&
         errno == ECONNREFUSED;
}

}  // namespace predump::restore::internal
