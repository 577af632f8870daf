#include "src/transport/address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <string.h>

#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "src/base/errors.h"

namespace predump::transport {
namespace {

absl::Status Malformed(absl::string_view text, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("\"", text, "\" is not an address: ", why,
                                                 "; expected HOST:PORT or [IPv6]:PORT"));
}

bool IsIpv6Number(const std::string& text) {
  in6_addr unused;
  // A scope ("fe80::1%eth0") is the resolver's business, not inet_pton's.
  return ::inet_pton(AF_INET6, text.substr(0, text.find('%')).c_str(), &unused) == 1;
}

struct AddrInfoDeleter {
  void operator()(addrinfo* list) const { ::freeaddrinfo(list); }
};

}  // namespace

absl::StatusOr<SocketAddress> SocketAddress::FromNative(const sockaddr* address, socklen_t length) {
  const socklen_t expected = address->sa_family == AF_INET    ? socklen_t{sizeof(sockaddr_in)}
                             : address->sa_family == AF_INET6 ? socklen_t{sizeof(sockaddr_in6)}
                                                              : 0;
  if (expected == 0 || length < expected) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a socket address of family ", address->sa_family, " is neither IPv4 nor IPv6"));
  }
  SocketAddress result;
  ::memcpy(&result.storage_, address, expected);
  result.length_ = expected;
  return result;
}

uint16_t SocketAddress::port() const {
  // The port lies at the same place in both families.
  return ntohs(reinterpret_cast<const sockaddr_in*>(&storage_)->sin_port);
}

bool SocketAddress::IsLoopback() const {
  constexpr uint32_t kLoopbackNet = 127;
  if (family() == AF_INET) {
    return ntohl(reinterpret_cast<const sockaddr_in*>(&storage_)->sin_addr.s_addr) >> 24 ==
           kLoopbackNet;
  }
  const in6_addr& address = reinterpret_cast<const sockaddr_in6*>(&storage_)->sin6_addr;
  if (IN6_IS_ADDR_V4MAPPED(&address)) return address.s6_addr[12] == kLoopbackNet;
  return IN6_IS_ADDR_LOOPBACK(&address);
}

std::string SocketAddress::ToString() const {
  char host[NI_MAXHOST];
  char service[NI_MAXSERV];
  if (::getnameinfo(native(), length_, host, sizeof host, service, sizeof service,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return "unknown address";
  }
  return family() == AF_INET6 ? absl::StrCat("[", host, "]:", service)
                              : absl::StrCat(host, ":", service);
}

absl::StatusOr<Address> Address::Parse(absl::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon == absl::string_view::npos) return Malformed(text, "it has no port");
  const absl::string_view port_text = text.substr(colon + 1);
  absl::string_view host = text.substr(0, colon);
  Address result;
  uint32_t port = 0;
  // SimpleAtoi also takes signs and blanks, which no port has.
  if (port_text.empty() || port_text.find_first_not_of("0123456789") != absl::string_view::npos ||
      !absl::SimpleAtoi(port_text, &port) || port > 65535) {
    return Malformed(text, "the port must be a number from 0 to 65535");
  }
  result.port_ = static_cast<uint16_t>(port);
  if (!host.empty() && host.front() == '[') {
    if (host.size() < 2 || host.back() != ']') return Malformed(text, "a bracket is not closed");
    host = host.substr(1, host.size() - 2);
    if (!IsIpv6Number(std::string(host))) {
      return Malformed(text, "what stands in brackets is no IPv6 address");
    }
  } else if (host.find(':') != absl::string_view::npos) {
    return Malformed(text, "an IPv6 address must stand in brackets");
  }
  if (host.empty()) return Malformed(text, "the host is missing");
  if (host.find_first_of("[] \t\n/") != absl::string_view::npos ||
      host.find('\0') != absl::string_view::npos) {
    return Malformed(text, "the host has characters that no host name has");
  }
  result.host_ = std::string(host);
  return result;
}

std::string Address::ToString() const {
  return host_.find(':') != std::string::npos ? absl::StrCat("[", host_, "]:", port_)
                                              : absl::StrCat(host_, ":", port_);
}

absl::StatusOr<std::vector<SocketAddress>> Address::Resolve() const {
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* raw = nullptr;
  const int error = ::getaddrinfo(host_.c_str(), absl::StrCat(port_).c_str(), &hints, &raw);
  const std::unique_ptr<addrinfo, AddrInfoDeleter> list(raw);
  if (error == EAI_SYSTEM) return base::ErrnoError(errno, "look up ", host_);
  if (error == EAI_NONAME || error == EAI_NODATA) {
    return absl::NotFoundError(absl::StrCat("no host is called ", host_));
  }
  if (error != 0) {
    return absl::UnavailableError(absl::StrCat("look up ", host_, ": ", ::gai_strerror(error)));
  }
  std::vector<SocketAddress> addresses;
  for (const addrinfo* entry = list.get(); entry != nullptr; entry = entry->ai_next) {
    absl::StatusOr<SocketAddress> address =
        SocketAddress::FromNative(entry->ai_addr, entry->ai_addrlen);
    if (address.ok()) addresses.push_back(*address);
  }
  if (addresses.empty()) {
    return absl::NotFoundError(absl::StrCat(host_, " has no IPv4 or IPv6 address"));
  }
  return addresses;
}

}  // namespace predump::transport
