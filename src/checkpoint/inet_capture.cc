#include <arpa/inet.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/base/unique_fd.h"
#include "src/checkpoint/socket_capture.h"
#include "src/images/image_constants.h"

namespace predump::checkpoint {
namespace {

struct Address {
  uint32_t words[4] = {};
  int word_count = 0;
  uint32_t port = 0;
  uint32_t scope = 0;
};

Address FromSockaddr(const sockaddr_storage& storage) {
  Address address;
  if (storage.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(storage);
    std::memcpy(address.words, &v4.sin_addr, 4);
    address.word_count = 1;
    address.port = ntohs(v4.sin_port);
  } else if (storage.ss_family == AF_INET6) {
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(storage);
    std::memcpy(address.words, &v6.sin6_addr, 16);
    address.word_count = 4;
    address.port = ntohs(v6.sin6_port);
    address.scope = v6.sin6_scope_id;
  }
  return address;
}

void FillAddresses(int socket, bool connected, criu::inet_sk_entry& entry) {
  sockaddr_storage storage = {};
  socklen_t length = sizeof storage;
  entry.set_src_port(0);
  entry.set_dst_port(0);
  if (::getsockname(socket, reinterpret_cast<sockaddr*>(&storage), &length) == 0) {
    const Address local = FromSockaddr(storage);
    entry.set_src_port(local.port);
    entry.mutable_src_addr()->Assign(local.words, local.words + local.word_count);
  }
  if (!connected) return;
  storage = {};
  length = sizeof storage;
  if (::getpeername(socket, reinterpret_cast<sockaddr*>(&storage), &length) == 0) {
    const Address peer = FromSockaddr(storage);
    entry.set_dst_port(peer.port);
    entry.mutable_dst_addr()->Assign(peer.words, peer.words + peer.word_count);
  }
}

criu::inet_sk_entry& StartInet(criu::file_entry& entry, const Descriptor& descriptor,
                               const SocketKind& kind, uint32_t state) {
  auto& body = StartEntry(entry, criu::INETSK, entry.mutable_isk(), descriptor);
  body.set_ino(static_cast<uint32_t>(descriptor.stat.st_ino));
  body.set_family(static_cast<uint32_t>(kind.family));
  body.set_type(static_cast<uint32_t>(kind.type));
  body.set_proto(static_cast<uint32_t>(kind.protocol));
  body.set_state(state);
  body.set_backlog(0);
  return body;
}

absl::StatusOr<uint32_t> Finish(FileContext& context, const Descriptor& descriptor,
                                const SocketKind& kind, criu::file_entry entry,
                                bool was_connected) {
  const int socket = descriptor.duplicate.get();
  PREDUMP_RETURN_IF_ERROR(FillCommonOptions(socket, *entry.mutable_isk()->mutable_opts()));
  PREDUMP_RETURN_IF_ERROR(FillInetOptions(socket, kind, *entry.mutable_isk()));
  const uint32_t state = entry.isk().state();
  const uint32_t id = context.files.builder().AddFile(std::move(entry));
  proto::FileExtra& extra = context.files.builder().Extra(id);
  extra.set_inode(descriptor.stat.st_ino);
  if (was_connected) extra.set_tcp_closed(true);
  FillOtherOptions(socket, context.fresh_options, kind, state, extra);
  return id;
}

// An established connection (or one that was) under --tcp-close.
absl::StatusOr<uint32_t> AddClosed(FileContext& context, const Descriptor& descriptor,
                                   const SocketKind& kind) {
  criu::file_entry entry;
  auto& body = StartInet(entry, descriptor, kind, images::kSocketClosed);
  FillAddresses(descriptor.duplicate.get(), true, body);
  return Finish(context, descriptor, kind, std::move(entry), true);
}

// A socket whose connection is over (a reset, an end from both sides) is in the same state as a new
// one, but there is an end, or an error, to be read from it.
bool WasConnected(int socket) {
  struct pollfd look = {.fd = socket, .events = POLLIN | POLLRDHUP, .revents = 0};
  return ::poll(&look, 1, 0) == 1 && (look.revents & (POLLIN | POLLRDHUP | POLLERR)) != 0;
}

absl::StatusOr<uint32_t> AddTcp(FileContext& context, const Descriptor& descriptor,
                                const SocketKind& kind) {
  struct tcp_info info = {};
  socklen_t length = sizeof info;
  if (::getsockopt(descriptor.duplicate.get(), IPPROTO_TCP, TCP_INFO, &info, &length) != 0) {
    return base::ErrnoError(errno, "TCP_INFO of ", descriptor.name());
  }
  const uint32_t state = info.tcpi_state;
  const bool was_connected =
      state == images::kSocketClosed && WasConnected(descriptor.duplicate.get());
  if (was_connected || (state != images::kSocketListening && state != images::kSocketClosed)) {
    if (context.options.tcp_close) return AddClosed(context, descriptor, kind);
    context.blockers.Add(descriptor.name(),
                         was_connected ? "a TCP connection that has ended, but not for its reader"
                                       : "an established TCP connection",
                         "--tcp-close lets the process find it closed at the target");
    return 0;
  }
  criu::file_entry entry;
  auto& body = StartInet(entry, descriptor, kind, state);
  if (state == images::kSocketListening) {
    // Of a listening socket TCP_INFO tells the backlog and the connections in it (net/ipv4/tcp.c).
    body.set_backlog(info.tcpi_sacked);
    if (info.tcpi_unacked > 0 && !context.options.tcp_close) {
      context.blockers.Add(descriptor.name(),
                           absl::StrCat(info.tcpi_unacked, " TCP connections wait to be accepted"),
                           "--tcp-close drops them");
    }
  }
  FillAddresses(descriptor.duplicate.get(), false, body);
  return Finish(context, descriptor, kind, std::move(entry), false);
}

absl::StatusOr<uint32_t> AddUdp(FileContext& context, const Descriptor& descriptor,
                                const SocketKind& kind) {
  sockaddr_storage storage = {};
  socklen_t length = sizeof storage;
  const bool connected = ::getpeername(descriptor.duplicate.get(),
                                       reinterpret_cast<sockaddr*>(&storage), &length) == 0;
  int unsent = 0;
  const auto corked = ReadIntOption(descriptor.duplicate.get(), IPPROTO_UDP, 1 /* UDP_CORK */);
  if (corked.ok() && *corked != 0 && ::ioctl(descriptor.duplicate.get(), SIOCOUTQ, &unsent) == 0 &&
      unsent > 0) {
    context.blockers.Add(descriptor.name(), "a UDP datagram is being put together (UDP_CORK)");
    return 0;
  }
  criu::file_entry entry;
  auto& body = StartInet(entry, descriptor, kind,
                         connected ? images::kSocketEstablished : images::kSocketClosed);
  FillAddresses(descriptor.duplicate.get(), connected, body);
  return Finish(context, descriptor, kind, std::move(entry), false);
}

}  // namespace

absl::StatusOr<uint32_t> AddInetSocket(FileContext& context, const Descriptor& descriptor,
                                       const SocketKind& kind) {
  return kind.type == SOCK_STREAM ? AddTcp(context, descriptor, kind)
                                  : AddUdp(context, descriptor, kind);
}

}  // namespace predump::checkpoint
