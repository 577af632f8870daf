#include "src/checkpoint/socket_options.h"

#include <asm/socket.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/images/image_constants.h"

namespace predump::checkpoint {
namespace {

struct RawOption {
  int level;
  int name;
};

// Newer than the headers of some systems.
constexpr int kSoPassPidfd = 76;     // Linux 6.5
constexpr int kSoRcvPriority = 82;   // 6.14
constexpr int kSoPassRights = 83;    // 6.16
constexpr int kTcpRtoMaxMs = 44;     // 6.15
constexpr int kTcpRtoMinUs = 45;     // 6.19
constexpr int kTcpDelackMaxUs = 46;  // 6.19

// Settable as getsockopt(2) returns them, and without a field in CRIU's messages. The older form of
// an option that has two comes first: it reads the same where the newer one was set.
constexpr RawOption kSocketLevel[] = {
    {SOL_SOCKET, SO_DEBUG},
    {SOL_SOCKET, SO_TIMESTAMP_OLD},
    {SOL_SOCKET, SO_TIMESTAMPNS_OLD},
    {SOL_SOCKET, SO_TIMESTAMPING_OLD},
    {SOL_SOCKET, SO_RXQ_OVFL},
    {SOL_SOCKET, SO_WIFI_STATUS},
    {SOL_SOCKET, SO_NOFCS},
    {SOL_SOCKET, SO_LOCK_FILTER},
    {SOL_SOCKET, SO_SELECT_ERR_QUEUE},
    {SOL_SOCKET, SO_BUSY_POLL},
    {SOL_SOCKET, SO_MAX_PACING_RATE},
    {SOL_SOCKET, SO_ZEROCOPY},
    {SOL_SOCKET, SO_TXTIME},
    {SOL_SOCKET, SO_TXREHASH},
    {SOL_SOCKET, SO_RCVMARK},
    {SOL_SOCKET, SO_PREFER_BUSY_POLL},
    {SOL_SOCKET, SO_BUSY_POLL_BUDGET},
    {SOL_SOCKET, SO_RESERVE_MEM},
    {SOL_SOCKET, SO_TIMESTAMP_NEW},
    {SOL_SOCKET, SO_TIMESTAMPNS_NEW},
    {SOL_SOCKET, SO_TIMESTAMPING_NEW},
    {SOL_SOCKET, kSoPassPidfd},
    {SOL_SOCKET, kSoRcvPriority},
    {SOL_SOCKET, kSoPassRights},
};
constexpr RawOption kIp[] = {
    {IPPROTO_IP, IP_OPTIONS},          {IPPROTO_IP, IP_RECVOPTS},
    {IPPROTO_IP, IP_RETOPTS},          {IPPROTO_IP, IP_MTU_DISCOVER},
    {IPPROTO_IP, IP_RECVERR},          {IPPROTO_IP, IP_RECVTTL},
    {IPPROTO_IP, IP_RECVTOS},          {IPPROTO_IP, IP_PASSSEC},
    {IPPROTO_IP, IP_TRANSPARENT},      {IPPROTO_IP, IP_RECVORIGDSTADDR},
    {IPPROTO_IP, IP_MINTTL},           {IPPROTO_IP, IP_NODEFRAG},
    {IPPROTO_IP, IP_CHECKSUM},         {IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT},
    {IPPROTO_IP, IP_RECVFRAGSIZE},     {IPPROTO_IP, IP_RECVERR_RFC4884},
    {IPPROTO_IP, IP_LOCAL_PORT_RANGE},
};
constexpr RawOption kIpv6[] = {
    {IPPROTO_IPV6, IPV6_UNICAST_HOPS},
    {IPPROTO_IPV6, IPV6_MTU_DISCOVER},
    {IPPROTO_IPV6, IPV6_RECVERR},
    {IPPROTO_IPV6, IPV6_RECVERR_RFC4884},
    {IPPROTO_IPV6, IPV6_RECVPKTINFO},
    {IPPROTO_IPV6, IPV6_2292PKTINFO},
    {IPPROTO_IPV6, IPV6_RECVHOPLIMIT},
    {IPPROTO_IPV6, IPV6_2292HOPLIMIT},
    {IPPROTO_IPV6, IPV6_RECVRTHDR},
    {IPPROTO_IPV6, IPV6_2292RTHDR},
    {IPPROTO_IPV6, IPV6_RECVHOPOPTS},
    {IPPROTO_IPV6, IPV6_2292HOPOPTS},
    {IPPROTO_IPV6, IPV6_RECVDSTOPTS},
    {IPPROTO_IPV6, IPV6_2292DSTOPTS},
    {IPPROTO_IPV6, IPV6_RTHDR},
    {IPPROTO_IPV6, IPV6_HOPOPTS},
    {IPPROTO_IPV6, IPV6_RTHDRDSTOPTS},
    {IPPROTO_IPV6, IPV6_DSTOPTS},
    {IPPROTO_IPV6, IPV6_RECVTCLASS},
    {IPPROTO_IPV6, IPV6_TCLASS},
    {IPPROTO_IPV6, IPV6_FLOWINFO},
    {IPPROTO_IPV6, IPV6_FLOWINFO_SEND},
    {IPPROTO_IPV6, IPV6_AUTOFLOWLABEL},
    {IPPROTO_IPV6, IPV6_DONTFRAG},
    {IPPROTO_IPV6, IPV6_MINHOPCOUNT},
    {IPPROTO_IPV6, IPV6_TRANSPARENT},
    {IPPROTO_IPV6, IPV6_FREEBIND},
    {IPPROTO_IPV6, IPV6_RECVORIGDSTADDR},
    {IPPROTO_IPV6, IPV6_RECVPATHMTU},
    {IPPROTO_IPV6, IPV6_RECVFRAGSIZE},
    {IPPROTO_IPV6, IPV6_ROUTER_ALERT_ISOLATE},
    {IPPROTO_IPV6, IPV6_ADDR_PREFERENCES},
};
// Of datagram sockets only: a stream socket shows values for them that it refuses to be set to.
constexpr RawOption kIpMulticast[] = {
    {IPPROTO_IP, IP_MULTICAST_TTL},
    {IPPROTO_IP, IP_MULTICAST_LOOP},
    {IPPROTO_IP, IP_MULTICAST_IF},
    {IPPROTO_IP, IP_MULTICAST_ALL},
};
constexpr RawOption kIpv6Multicast[] = {
    {IPPROTO_IPV6, IPV6_MULTICAST_HOPS},
    {IPPROTO_IPV6, IPV6_MULTICAST_LOOP},
    {IPPROTO_IPV6, IPV6_MULTICAST_ALL},
};
// Not TCP_QUICKACK: it says what the connection does now, and turns itself off.
constexpr RawOption kTcp[] = {
    {IPPROTO_TCP, TCP_DEFER_ACCEPT},     {IPPROTO_TCP, TCP_SYNCNT},
    {IPPROTO_TCP, TCP_LINGER2},          {IPPROTO_TCP, TCP_CONGESTION},
    {IPPROTO_TCP, TCP_USER_TIMEOUT},     {IPPROTO_TCP, TCP_FASTOPEN},
    {IPPROTO_TCP, TCP_FASTOPEN_KEY},     {IPPROTO_TCP, TCP_NOTSENT_LOWAT},
    {IPPROTO_TCP, TCP_SAVE_SYN},         {IPPROTO_TCP, TCP_INQ},
    {IPPROTO_TCP, TCP_TX_DELAY},         {IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE},
    {IPPROTO_TCP, TCP_FASTOPEN_CONNECT}, {IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS},
    {IPPROTO_TCP, kTcpRtoMaxMs},         {IPPROTO_TCP, kTcpRtoMinUs},
    {IPPROTO_TCP, kTcpDelackMaxUs},
};
// A connection changes these itself.
constexpr RawOption kTcpUnconnected[] = {
    {IPPROTO_TCP, TCP_MAXSEG},
    {IPPROTO_TCP, TCP_WINDOW_CLAMP},
};
// So does every packet that comes in, but to a socket that listens.
constexpr RawOption kTcpListening[] = {{SOL_SOCKET, SO_INCOMING_CPU}};
constexpr RawOption kUdp[] = {
    {IPPROTO_UDP, UDP_CORK},    {IPPROTO_UDP, UDP_NO_CHECK6_TX}, {IPPROTO_UDP, UDP_NO_CHECK6_RX},
    {IPPROTO_UDP, UDP_SEGMENT}, {IPPROTO_UDP, UDP_GRO},
};

struct RefusedOption {
  RawOption option;
  const char* reason;
};
// Numbers of interfaces are this host's; encapsulations belong to another part of the kernel.
constexpr RefusedOption kRefused[] = {
    {{IPPROTO_IP, IP_UNICAST_IF}, "names an interface by its number (IP_UNICAST_IF)"},
    {{IPPROTO_IPV6, IPV6_UNICAST_IF}, "names an interface by its number (IPV6_UNICAST_IF)"},
    {{IPPROTO_IPV6, IPV6_MULTICAST_IF}, "names an interface by its number (IPV6_MULTICAST_IF)"},
    {{IPPROTO_UDP, UDP_ENCAP}, "encapsulates for the kernel (UDP_ENCAP)"},
};

// The value, empty where the socket has no such option.
std::string ReadRaw(int socket, const RawOption& option) {
  std::array<char, 256> value;
  socklen_t length = value.size();
  if (::getsockopt(socket, option.level, option.name, value.data(), &length) != 0) return "";
  return std::string(value.data(), length);
}

void CompareAll(int socket, FreshOptions& fresh, const SocketKind& kind,
                std::span<const RawOption> options, proto::FileExtra& extra) {
  for (const RawOption& option : options) {
    std::string value = ReadRaw(socket, option);
    if (value.empty() || value == fresh.Value(kind, option.level, option.name)) continue;
    proto::SocketOption* entry = extra.add_socket_options();
    entry->set_level(option.level);
    entry->set_name(option.name);
    entry->set_value(std::move(value));
  }
}

absl::StatusOr<struct timeval> ReadTimeout(int socket, int name) {
  struct timeval timeout;
  socklen_t length = sizeof timeout;
  if (::getsockopt(socket, SOL_SOCKET, name, &timeout, &length) != 0) {
    return base::ErrnoError(errno, "getsockopt of a timeout");
  }
  return timeout;
}

int IntOr(int socket, int level, int name, int otherwise) {
  const auto value = ReadIntOption(socket, level, name);
  return value.ok() ? *value : otherwise;
}

void FillTcpOptions(int socket, criu::inet_sk_entry& entry) {
  criu::tcp_opts_entry& tcp = *entry.mutable_tcp_opts();
  tcp.set_cork(IntOr(socket, IPPROTO_TCP, TCP_CORK, 0) != 0);
  tcp.set_nodelay(IntOr(socket, IPPROTO_TCP, TCP_NODELAY, 0) != 0);
  const auto fill = [&](int name, auto set) {
    if (const auto value = ReadIntOption(socket, IPPROTO_TCP, name); value.ok()) {
      set(static_cast<uint32_t>(*value));
    }
  };
  fill(TCP_KEEPCNT, [&](uint32_t v) { tcp.set_keepcnt(v); });
  fill(TCP_KEEPIDLE, [&](uint32_t v) { tcp.set_keepidle(v); });
  fill(TCP_KEEPINTVL, [&](uint32_t v) { tcp.set_keepintvl(v); });
}

}  // namespace

absl::StatusOr<int> ReadIntOption(int socket, int level, int name) {
  int value = 0;
  socklen_t length = sizeof value;
  if (::getsockopt(socket, level, name, &value, &length) != 0) {
    return base::ErrnoError(errno, "getsockopt ", level, " ", name);
  }
  return value;
}

absl::StatusOr<SocketKind> ReadSocketKind(int socket) {
  SocketKind kind;
  PREDUMP_ASSIGN_OR_RETURN(kind.family, ReadIntOption(socket, SOL_SOCKET, SO_DOMAIN));
  PREDUMP_ASSIGN_OR_RETURN(kind.type, ReadIntOption(socket, SOL_SOCKET, SO_TYPE));
  PREDUMP_ASSIGN_OR_RETURN(kind.protocol, ReadIntOption(socket, SOL_SOCKET, SO_PROTOCOL));
  return kind;
}

absl::Status FillCommonOptions(int socket, criu::sk_opts_entry& options) {
  const auto number = [&](int name) {
    return static_cast<uint32_t>(IntOr(socket, SOL_SOCKET, name, 0));
  };
  const auto flag = [&](int name) { return IntOr(socket, SOL_SOCKET, name, 0) != 0; };
  PREDUMP_ASSIGN_OR_RETURN(const struct timeval send, ReadTimeout(socket, SO_SNDTIMEO_OLD));
  PREDUMP_ASSIGN_OR_RETURN(const struct timeval receive, ReadTimeout(socket, SO_RCVTIMEO_OLD));
  options.set_so_sndbuf(number(SO_SNDBUF));
  options.set_so_rcvbuf(number(SO_RCVBUF));
  options.set_so_buf_lock(number(SO_BUF_LOCK));
  options.set_so_snd_tmo_sec(static_cast<uint64_t>(send.tv_sec));
  options.set_so_snd_tmo_usec(static_cast<uint64_t>(send.tv_usec));
  options.set_so_rcv_tmo_sec(static_cast<uint64_t>(receive.tv_sec));
  options.set_so_rcv_tmo_usec(static_cast<uint64_t>(receive.tv_usec));
  options.set_reuseaddr(flag(SO_REUSEADDR));
  options.set_so_reuseport(flag(SO_REUSEPORT));
  options.set_so_priority(number(SO_PRIORITY));
  options.set_so_rcvlowat(number(SO_RCVLOWAT));
  options.set_so_mark(number(SO_MARK));
  options.set_so_passcred(flag(SO_PASSCRED));
  options.set_so_passsec(flag(SO_PASSSEC));
  options.set_so_dontroute(flag(SO_DONTROUTE));
  options.set_so_no_check(flag(SO_NO_CHECK));
  options.set_so_broadcast(flag(SO_BROADCAST));
  options.set_so_keepalive(flag(SO_KEEPALIVE));
  options.set_so_oobinline(number(SO_OOBINLINE));
  struct linger linger = {};
  socklen_t length = sizeof linger;
  if (::getsockopt(socket, SOL_SOCKET, SO_LINGER, &linger, &length) == 0 && linger.l_onoff != 0) {
    options.set_so_linger(static_cast<uint32_t>(linger.l_linger));
  }
  std::string device = ReadRaw(socket, {SOL_SOCKET, SO_BINDTODEVICE});
  if (const size_t end = device.find('\0'); end != std::string::npos) device.resize(end);
  if (!device.empty()) options.set_so_bound_dev(device);
  return absl::OkStatus();
}

absl::Status FillInetOptions(int socket, const SocketKind& kind, criu::inet_sk_entry& entry) {
  if (kind.family == AF_INET6) {
    PREDUMP_ASSIGN_OR_RETURN(const int v6only, ReadIntOption(socket, IPPROTO_IPV6, IPV6_V6ONLY));
    entry.set_v6only(v6only != 0);
  }
  criu::ip_opts_entry& ip = *entry.mutable_ip_opts();
  ip.set_freebind(IntOr(socket, IPPROTO_IP, IP_FREEBIND, 0) != 0);
  ip.set_pktinfo(IntOr(socket, IPPROTO_IP, IP_PKTINFO, 0) != 0);
  ip.set_tos(static_cast<uint32_t>(IntOr(socket, IPPROTO_IP, IP_TOS, 0)));
  ip.set_ttl(static_cast<uint32_t>(IntOr(socket, IPPROTO_IP, IP_TTL, 0)));
  if (kind.type == SOCK_STREAM) FillTcpOptions(socket, entry);
  return absl::OkStatus();
}

const std::string& FreshOptions::Value(const SocketKind& kind, int level, int name) {
  const auto [known, added] =
      values_.try_emplace({kind.family, kind.type, kind.protocol, level, name});
  if (!added) return known->second;
  base::UniqueFd& socket = sockets_[{kind.family, kind.type, kind.protocol}];
  if (!socket.valid()) {
    socket = base::UniqueFd(::socket(kind.family, kind.type | SOCK_CLOEXEC, kind.protocol));
  }
  known->second = ReadRaw(socket.get(), {level, name});
  return known->second;
}

void FillOtherOptions(int socket, FreshOptions& fresh, const SocketKind& kind, uint32_t state,
                      proto::FileExtra& extra) {
  const auto compare = [&](std::span<const RawOption> options) {
    CompareAll(socket, fresh, kind, options, extra);
  };
  compare(kSocketLevel);
  if (kind.family == AF_UNIX) return;
  compare(kIp);
  if (kind.family == AF_INET6) compare(kIpv6);
  if (kind.type == SOCK_STREAM) {
    compare(kTcp);
    if (!extra.tcp_closed()) compare(kTcpUnconnected);
    if (state == images::kSocketListening) compare(kTcpListening);
  } else {
    compare(kUdp);
    compare(kIpMulticast);
    if (kind.family == AF_INET6) compare(kIpv6Multicast);
  }
}

std::optional<std::string> WhyAttachmentsStay(int socket, const SocketKind& kind) {
  socklen_t instructions = 0;
  // With a length of 0 the kernel answers the number of instructions (socket(7), since Linux 3.8).
  // and refuses to show a filter that is no classic BPF.
  const int answer = ::getsockopt(socket, SOL_SOCKET, SO_ATTACH_FILTER, nullptr, &instructions);
  if ((answer == 0 && instructions > 0) || (answer != 0 && errno == EACCES)) {
    return "a packet filter is attached (SO_ATTACH_FILTER)";
  }
  // Reading its queue would move the offset, which the process could see.
  if (IntOr(socket, SOL_SOCKET, SO_PEEK_OFF, -1) >= 0) {
    return "peeks at an offset of its own (SO_PEEK_OFF)";
  }
  if (kind.family == AF_UNIX) return std::nullopt;
  for (const RefusedOption& refused : kRefused) {
    const std::string value = ReadRaw(socket, refused.option);
    if (value.find_first_not_of('\0') != std::string::npos) return refused.reason;
  }
  if (kind.type == SOCK_STREAM &&
      ReadRaw(socket, {IPPROTO_TCP, TCP_ULP}).find_first_not_of('\0') != std::string::npos) {
    return "an upper layer protocol is attached (TCP_ULP)";
  }
  return std::nullopt;
}

}  // namespace predump::checkpoint
