// Listening TCP, UDP and unix sockets with their options. Nothing is connected until the end.
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <string>

#include "tests/workloads/holdings.h"

namespace predump::workloads {
namespace {

struct Address {
  sockaddr_storage storage = {};
  socklen_t size = sizeof storage;

  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
  bool operator==(const Address& other) const {
    return size == other.size && memcmp(&storage, &other.storage, size) == 0;
  }
};

Address LocalAddress(int fd) {
  Address address;
  getsockname(fd, address.get(), &address.size);
  return address;
}

uint16_t Port(const Address& address) {
  // The same place in both families.
  return ntohs(reinterpret_cast<const sockaddr_in*>(&address.storage)->sin_port);
}

Address InetAddress(int family, bool loopback, uint16_t port) {
  Address address;
  if (family == AF_INET) {
    auto* in = reinterpret_cast<sockaddr_in*>(&address.storage);
    in->sin_family = AF_INET;
    in->sin_addr.s_addr = htonl(loopback ? INADDR_LOOPBACK : INADDR_ANY);
    in->sin_port = htons(port);
    address.size = sizeof *in;
  } else {
    auto* in6 = reinterpret_cast<sockaddr_in6*>(&address.storage);
    in6->sin6_family = AF_INET6;
    in6->sin6_addr = loopback ? in6addr_loopback : in6addr_any;
    in6->sin6_port = htons(port);
    address.size = sizeof *in6;
  }
  return address;
}

// `name` begins with a zero byte for an abstract address.
Address UnixAddress(const std::string& name) {
  Address address;
  auto* un = reinterpret_cast<sockaddr_un*>(&address.storage);
  un->sun_family = AF_UNIX;
  if (name.size() >= sizeof un->sun_path) Die("--dir is too long for a unix socket");
  memcpy(un->sun_path, name.data(), name.size());
  const size_t end = name[0] == '\0' ? 0 : 1;  // the zero counts in a path only
  address.size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size() + end);
  return address;
}

int SetOption(int fd, int level, int option, int value) {
  return Must(setsockopt(fd, level, option, &value, sizeof value), "setsockopt");
}

// Options and local address of one socket: as they were once all was set up.
class SocketRecord {
 public:
  explicit SocketRecord(int fd) : fd_(fd), local_(LocalAddress(fd)) {
    for (const OptionName& option : kOptions) values_.push_back(Get(option));
  }

  void Check(const HoldingContext& context) const {
    context.Check(LocalAddress(fd_) == local_, "a socket has another local address");
    for (size_t i = 0; i < std::size(kOptions); ++i) {
      context.CheckEqual(Get(kOptions[i]), values_[i], kOptions[i].name);
    }
  }
  const Address& local() const { return local_; }

 private:
  struct OptionName {
    int level;
    int option;
    const char* name;
  };
  static constexpr OptionName kOptions[] = {
      {SOL_SOCKET, SO_TYPE, "SO_TYPE"},
      {SOL_SOCKET, SO_DOMAIN, "SO_DOMAIN"},
      {SOL_SOCKET, SO_PROTOCOL, "SO_PROTOCOL"},
      {SOL_SOCKET, SO_ACCEPTCONN, "SO_ACCEPTCONN"},
      {SOL_SOCKET, SO_REUSEADDR, "SO_REUSEADDR"},
      {SOL_SOCKET, SO_REUSEPORT, "SO_REUSEPORT"},
      {SOL_SOCKET, SO_KEEPALIVE, "SO_KEEPALIVE"},
      {SOL_SOCKET, SO_BROADCAST, "SO_BROADCAST"},
      {SOL_SOCKET, SO_OOBINLINE, "SO_OOBINLINE"},
      {SOL_SOCKET, SO_PRIORITY, "SO_PRIORITY"},
      {SOL_SOCKET, SO_RCVBUF, "SO_RCVBUF"},
      {SOL_SOCKET, SO_SNDBUF, "SO_SNDBUF"},
      {SOL_SOCKET, SO_RCVLOWAT, "SO_RCVLOWAT"},
      {SOL_SOCKET, SO_PASSCRED, "SO_PASSCRED"},
      {SOL_SOCKET, SO_ERROR, "SO_ERROR"},
      {IPPROTO_TCP, TCP_NODELAY, "TCP_NODELAY"},
      {IPPROTO_TCP, TCP_KEEPIDLE, "TCP_KEEPIDLE"},
      {IPPROTO_TCP, TCP_KEEPINTVL, "TCP_KEEPINTVL"},
      {IPPROTO_TCP, TCP_KEEPCNT, "TCP_KEEPCNT"},
      {IPPROTO_TCP, TCP_DEFER_ACCEPT, "TCP_DEFER_ACCEPT"},
      {IPPROTO_TCP, TCP_USER_TIMEOUT, "TCP_USER_TIMEOUT"},
      {IPPROTO_IP, IP_TTL, "IP_TTL"},
      {IPPROTO_IP, IP_TOS, "IP_TOS"},
      {IPPROTO_IPV6, IPV6_V6ONLY, "IPV6_V6ONLY"},
  };

  // An option the socket does not have is -errno, and stays that.
  int64_t Get(const OptionName& option) const {
    int value = 0;
    socklen_t size = sizeof value;
    if (getsockopt(fd_, option.level, option.option, &value, &size) == -1) return -errno;
    return value;
  }

  int fd_;
  Address local_;
  std::vector<int64_t> values_;
};

// A listener nobody connects to until the end.
class Listener : public Holding {
 public:
  Listener(const HoldingContext& context, const char* name, int fd, Address to_connect_to)
      : context_(context), name_(name), fd_(fd), peer_address_(to_connect_to), record_(fd) {
    backlog_ = Backlog();
  }

  void Verify(uint64_t) override {
    record_.Check(context_);
    context_.Check(accept(fd_, nullptr, nullptr) == -1 && errno == EAGAIN, "accept");
    context_.CheckEqual(Backlog(), backlog_, "backlog of a listener");
  }

  void Final() override {
    const int client = socket(peer_address_.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (context_.Check(connect(client, peer_address_.get(), peer_address_.size) == 0, name_,
                       true)) {
      const int accepted = accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC);
      char byte = 0;
      context_.Check(accepted >= 0 && send(client, "z", 1, 0) == 1 &&
                         recv(accepted, &byte, 1, 0) == 1 && byte == 'z',
                     name_, true);
      close(accepted);
    }
    close(client);
  }

 private:
  // Of a TCP listener, tcpi_sacked is the longest its queue may become.
  int64_t Backlog() const {
    tcp_info info = {};
    socklen_t size = sizeof info;
    if (getsockopt(fd_, IPPROTO_TCP, TCP_INFO, &info, &size) == -1) return -1;
    return info.tcpi_sacked;
  }

  const HoldingContext context_;
  const char* name_;
  int fd_;
  Address peer_address_;
  SocketRecord record_;
  int64_t backlog_ = 0;
};

// -1 where the machine has no such family.
int TryListenTcp(const HoldingContext& context, int family, uint16_t port) {
  const int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd == -1) return -1;
  SetOption(fd, SOL_SOCKET, SO_REUSEADDR, 1);
  if (family == AF_INET6) SetOption(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
  Address any = InetAddress(family, false, port);
  if (bind(fd, any.get(), any.size) == -1) {
    close(fd);
    return -1;
  }
  if (context.Wants("protocol-options")) {
    SetOption(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    SetOption(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 12'345);
  }
  SetOption(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  SetOption(fd, IPPROTO_TCP, TCP_KEEPIDLE, 111);
  SetOption(fd, IPPROTO_TCP, TCP_KEEPINTVL, 22);
  SetOption(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
  SetOption(fd, SOL_SOCKET, SO_RCVBUF, 200'000);
  SetOption(fd, SOL_SOCKET, SO_PRIORITY, 4);
  Must(listen(fd, 17), "listen");
  return fd;
}

int ListenUnix(const std::string& name) {
  const int fd = Must(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0), "socket");
  Address address = UnixAddress(name);
  Must(bind(fd, address.get(), address.size), "bind of a unix socket");
  Must(listen(fd, 5), "listen");
  return fd;
}

// One bound, one connected to it. A datagram in flight during a move may be lost, as datagrams may.
class UdpPair : public Holding {
 public:
  explicit UdpPair(const HoldingContext& context)
      : context_(context),
        bound_(MakeBound(context)),
        connected_(MakeConnected(bound_)),
        bound_record_(bound_),
        connected_record_(connected_),
        lost_(context.workload().AddCounter("udp_lost")) {}

  void Verify(uint64_t iteration) override {
    bound_record_.Check(context_);
    connected_record_.Check(context_);
    Address peer;
    getpeername(connected_, peer.get(), &peer.size);
    context_.CheckEqual(Port(peer), Port(bound_record_.local()), "peer of a connected UDP socket");
    if (iteration % 16 != 0) return;
    const ssize_t sent = send(connected_, &iteration, sizeof iteration, 0);
    context_.Check(sent == sizeof iteration, "send of a datagram", true);
    uint64_t got = 0;
    Address from;
    if (recvfrom(bound_, &got, sizeof got, 0, from.get(), &from.size) == -1) {
      lost_++;
      return;
    }
    context_.CheckEqual(static_cast<int64_t>(got), static_cast<int64_t>(iteration), "datagram");
    context_.CheckEqual(Port(from), Port(connected_record_.local()), "sender of a datagram");
  }

 private:
  static int MakeBound(const HoldingContext& context) {
    const int fd = Must(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), "socket");
    SetOption(fd, SOL_SOCKET, SO_BROADCAST, 1);
    if (context.Wants("protocol-options")) SetOption(fd, IPPROTO_IP, IP_TTL, 33);
    Address any = InetAddress(AF_INET, false, 0);
    Must(bind(fd, any.get(), any.size), "bind");
    return fd;
  }
  static int MakeConnected(int to) {
    const int fd = Must(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), "socket");
    Address peer = InetAddress(AF_INET, true, Port(LocalAddress(to)));
    Must(connect(fd, peer.get(), peer.size), "connect");
    return fd;
  }

  const HoldingContext context_;
  int bound_, connected_;
  SocketRecord bound_record_, connected_record_;
  Counter& lost_;
};

void AddTcpListeners(const HoldingContext& context, Holdings& holdings) {
  const int tcp =
      Must(TryListenTcp(context, AF_INET, context.settings().tcp_port), "listen on TCP");
  const uint16_t port = Port(LocalAddress(tcp));
  context.workload().AddCounter("tcp_port") = port;
  holdings.push_back(
      std::make_unique<Listener>(context, "tcp-listener", tcp, InetAddress(AF_INET, true, port)));
  if (!context.Wants("tcp6-listener")) return;
  // The same port again, which only V6ONLY allows.
  const int tcp6 = TryListenTcp(context, AF_INET6, port);
  context.workload().AddCounter("tcp6_listening") = tcp6 >= 0 ? 1 : 0;
  if (tcp6 < 0) return;
  holdings.push_back(std::make_unique<Listener>(context, "tcp6-listener", tcp6,
                                                InetAddress(AF_INET6, true, port)));
}

}  // namespace

Holdings MakeSocketHoldings(const HoldingContext& context) {
  Holdings holdings;
  if (context.Wants("tcp-listener")) AddTcpListeners(context, holdings);
  if (context.Wants("unix-listener")) {
    const std::string path = context.File("listening");
    unlink(path.c_str());
    holdings.push_back(
        std::make_unique<Listener>(context, "unix-listener", ListenUnix(path), UnixAddress(path)));
  }
  if (context.Wants("abstract-listener")) {
    const std::string name = std::string(1, '\0') + "predump-test-" + std::to_string(getpid());
    holdings.push_back(std::make_unique<Listener>(context, "abstract-listener", ListenUnix(name),
                                                  UnixAddress(name)));
  }
  if (context.Wants("udp")) holdings.push_back(std::make_unique<UdpPair>(context));
  return holdings;
}

}  // namespace predump::workloads
