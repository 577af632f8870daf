#include "src/restore/socket_plan.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/base/unique_fd.h"
#include "src/images/image_constants.h"
#include "src/restore/file_plan.h"
#include "src/restore/socket_address.h"

namespace predump::restore::internal {
namespace {

constexpr int kSoBufLock = 72;             // SO_BUF_LOCK, Linux 5.14
constexpr uint32_t kSendBufferLocked = 1;  // SOCK_SNDBUF_LOCK
constexpr uint32_t kReceiveBufferLocked = 2;
constexpr uint32_t kDoubled = 2;                 // by the kernel, as it takes a size
constexpr uint32_t kRoomForAnyQueue = 1u << 29;  // none of it is reserved

// A size that was set stays locked; one that was not is left to the kernel's own tuning, except
// where queued data may need the room.
bool SetsSendBuffer(const criu::sk_opts_entry& options, bool is_unix) {
  return (options.so_buf_lock() & kSendBufferLocked) != 0 ||
         (is_unix && !options.has_so_buf_lock());
}

const criu::sk_opts_entry& OptionsOf(const criu::file_entry& file) {
  return file.has_usk() ? file.usk().opts() : file.isk().opts();
}

// What a socket of this host has that nobody set (sysctl net.ipv4.ip_default_ttl).
uint32_t DefaultTtl() {
  const base::UniqueFd fresh(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  int ttl = 0;
  socklen_t size = sizeof ttl;
  if (::getsockopt(fresh.get(), IPPROTO_IP, IP_TTL, &ttl, &size) != 0) return 0;
  return static_cast<uint32_t>(ttl);
}

// One it was bound to. With SO_PASSCRED the kernel gives a sender a name of its own making (five
// hexadecimal digits, unix(7), "Autobind feature"), and will do so again.
bool HasChosenName(const criu::unix_sk_entry& socket) {
  const std::string& name = socket.name();
  if (name.empty()) return false;
  const bool kernels_own = name.size() == 6 && IsAbstract(name) &&
                           std::all_of(name.begin() + 1, name.end(),
                                       [](unsigned char c) { return absl::ascii_isxdigit(c); });
  return !kernels_own;
}

}  // namespace

template <typename T>
void SocketPlan::SetOption(int fd, int level, int option, const T& value, const std::string& name) {
  files_.plan_.Call(SYS_setsockopt,
                    {fd, level, option, files_.plan_.Struct(value), uint64_t{sizeof(T)}},
                    absl::StrCat("option ", level, "/", option, " of ", name));
}

absl::Status SocketPlan::AddSocket(const criu::file_entry& file) {
  return file.type() == criu::INETSK ? AddInet(file) : AddUnix(file);
}

absl::Status SocketPlan::AddInet(const criu::file_entry& file) {
  const criu::inet_sk_entry& socket = file.isk();
  CallPlan& plan = files_.plan_;
  const std::string name = absl::StrCat("socket ", files_.Name(file));
  const proto::FileExtra* extra = files_.files_.FindExtra(file.id());
  const bool closed = extra != nullptr && extra->tcp_closed();
  const bool tcp = socket.type() == SOCK_STREAM;
  if (tcp && !closed && socket.state() != images::kSocketListening &&
      socket.state() != images::kSocketClosed) {
    return absl::UnimplementedError(
        absl::StrCat(name, ": TCP connections cannot be restored (use --tcp-close)"));
  }
  const uint64_t type = socket.type() | (socket.flags() & O_NONBLOCK);
  const int fd = files_.Place(
      plan.Call(SYS_socket, {uint64_t{socket.family()}, type, uint64_t{socket.proto()}}, name),
      file);
  const int on = 1;
  const int off = 0;
  if (socket.family() == AF_INET6) {
    SetOption(fd, IPPROTO_IPV6, IPV6_V6ONLY, socket.v6only() ? on : off, name);
  }
  AddIpOptions(fd, socket.ip_opts(), name);
  AddOptions(fd, socket.opts(), false, name);
  // Some are good for new sockets only (TCP_FASTOPEN_CONNECT), some let it be bound
  // (IP_TRANSPARENT).
  AddExtraOptions(fd, file, name);
  const bool bound = !closed && socket.src_port() != 0;
  // Connections the port had on this host may linger in TIME_WAIT; a listener may take it anyway.
  const bool borrow_reuse = bound && tcp && !socket.opts().reuseaddr();
  if (borrow_reuse) SetOption(fd, SOL_SOCKET, SO_REUSEADDR, on, name);
  if (bound) {
    const std::string address = InetSourceAddress(socket);
    plan.Call(SYS_bind, {fd, plan.Bytes(address), uint64_t{address.size()}},
              absl::StrCat("bind ", files_.Name(file), " to ", InetAddressText(socket)));
  }
  if (!closed && !tcp && socket.dst_port() != 0) {
    const std::string address = InetPeerAddress(socket);
    plan.Call(SYS_connect, {fd, plan.Bytes(address), uint64_t{address.size()}},
              absl::StrCat("connect ", name));
  }
  if (tcp) AddTcpOptions(fd, socket, name);
  if (!closed && tcp && socket.state() == images::kSocketListening) {
    plan.Call(SYS_listen, {fd, uint64_t{socket.backlog()}},
              absl::StrCat("listen on ", InetAddressText(socket)));
  }
  if (borrow_reuse) SetOption(fd, SOL_SOCKET, SO_REUSEADDR, off, name);
  files_.SetStatusFlags(fd, socket.flags() & (O_ASYNC | O_NONBLOCK), file);
  return absl::OkStatus();
}

absl::Status SocketPlan::AddUnix(const criu::file_entry& file) {
  const criu::unix_sk_entry& socket = file.usk();
  const std::string name = absl::StrCat("unix socket ", files_.Name(file));
  // The kernel calls a datagram socket that somebody else has connected to established for ever.
  const bool unconnected = socket.type() == SOCK_DGRAM && socket.peer() == 0;
  if (socket.state() == images::kSocketEstablished && !unconnected) {
    const criu::file_entry* peer = nullptr;
    for (const auto& other : files_.state_.files()) {
      if (socket.peer() != 0 && other.has_usk() && other.usk().ino() == socket.peer()) {
        peer = &other;
      }
    }
    if (socket.type() != SOCK_DGRAM || (peer != nullptr && peer->usk().peer() == socket.ino())) {
      return AddUnixPair(file, peer);
    }
    return absl::UnimplementedError(
        absl::StrCat(name, ": a datagram socket connected one way cannot be restored"));
  }
  CallPlan& plan = files_.plan_;
  const int fd = files_.Place(
      plan.Call(SYS_socket, {AF_UNIX, uint64_t{socket.type() | (socket.flags() & O_NONBLOCK)}, 0},
                name),
      file);
  AddOptions(fd, socket.opts(), true, name);
  if (!socket.name().empty()) BindUnix(fd, file);
  if (socket.state() == images::kSocketListening) {
    plan.Call(SYS_listen, {fd, uint64_t{socket.backlog()}},
              absl::StrCat("listen on ", UnixAddressText(socket.name())));
  }
  AddExtraOptions(fd, file, name);
  files_.SetStatusFlags(fd, socket.flags() & (O_ASYNC | O_NONBLOCK), file);
  return absl::OkStatus();
}

void SocketPlan::AddIpOptions(int fd, const criu::ip_opts_entry& options, const std::string& name) {
  if (options.freebind()) SetOption(fd, IPPROTO_IP, IP_FREEBIND, 1, name);
  if (options.pktinfo()) SetOption(fd, IPPROTO_IP, IP_PKTINFO, 1, name);
  if (options.tos() != 0) SetOption(fd, IPPROTO_IP, IP_TOS, static_cast<int>(options.tos()), name);
  // A socket nobody gave one shows the host's default: set, it would no longer follow it.
  if (options.ttl() != 0 && options.ttl() != DefaultTtl()) {
    SetOption(fd, IPPROTO_IP, IP_TTL, static_cast<int>(options.ttl()), name);
  }
}

void SocketPlan::BindUnix(int fd, const criu::file_entry& file) {
  const criu::unix_sk_entry& socket = file.usk();
  CallPlan& plan = files_.plan_;
  const std::string text = UnixAddressText(socket.name());
  const std::string address = UnixAddress(socket.name());
  const std::string path = UnixPath(socket);
  const bool in_file_system = !IsAbstract(socket.name());
  if (in_file_system && path != text) {
    plan.Call(SYS_chdir, {plan.String(socket.name_dir())},
              absl::StrCat("enter ", socket.name_dir(), " to bind ", text));
  }
  if (in_file_system && IsStaleSocket(path)) {
    plan.Call(SYS_unlink, {plan.String(path)}, absl::StrCat("remove the dead socket ", path));
  }
  const CallPlan::Id bind = plan.Call(SYS_bind, {fd, plan.Bytes(address), uint64_t{address.size()}},
                                      absl::StrCat("bind ", files_.Name(file), " to ", text));
  if (!in_file_system) return;
  files_.bound_paths_.push_back({bind, path});
  if (socket.has_file_perms()) {
    const criu::file_perms_entry& perms = socket.file_perms();
    plan.Call(SYS_chown, {plan.String(path), uint64_t{perms.uid()}, uint64_t{perms.gid()}},
              absl::StrCat("owner of ", path));
    plan.Call(SYS_chmod, {plan.String(path), uint64_t{perms.mode() & 07777}},
              absl::StrCat("mode of ", path));
  }
}

absl::Status SocketPlan::AddUnixPair(const criu::file_entry& file, const criu::file_entry* peer) {
  if (peer != nullptr && files_.Descriptors(peer->id()).empty()) peer = nullptr;
  CallPlan& plan = files_.plan_;
  const std::string name = absl::StrCat("socket pair of ", files_.Name(file));
  for (const criu::file_entry* end : {&file, peer}) {
    if (end != nullptr && !end->usk().name().empty() && !IsAbstract(end->usk().name())) {
      return absl::UnimplementedError(
          absl::StrCat(files_.Name(*end), ": a connected unix socket with the name ",
                       UnixAddressText(end->usk().name()), " cannot be restored"));
    }
  }
  files_.done_.insert(file.id());
  if (peer != nullptr) files_.done_.insert(peer->id());
  plan.Call(SYS_socketpair, {AF_UNIX, uint64_t{file.usk().type()}, 0, plan.Room(8)}, name);
  const auto [fd, other] = files_.PlacePair(&file, peer);
  if (HasChosenName(file.usk())) BindUnix(fd, file);
  AddOptions(fd, file.usk().opts(), true, name);
  AddExtraOptions(fd, file, name);
  if (peer != nullptr) {
    if (HasChosenName(peer->usk())) BindUnix(other, *peer);
    AddOptions(other, peer->usk().opts(), true, name);
    AddExtraOptions(other, *peer, name);
    files_.SetStatusFlags(other, peer->usk().flags() & (O_ASYNC | O_NONBLOCK), *peer);
  } else {
    // The other end was closed before the freeze: what it had sent is still to be read.
    for (const auto& packet : files_.state_.packets()) {
      if (packet.entry().id_for() != file.id()) continue;
      plan.Expect(plan.Call(SYS_sendto,
                            {other, plan.Bytes(packet.data()), uint64_t{packet.data().size()},
                             MSG_DONTWAIT, 0, 0},
                            absl::StrCat("queue of ", name)),
                  static_cast<int64_t>(packet.data().size()));
    }
    files_.CloseSpare(other);
  }
  files_.SetStatusFlags(fd, file.usk().flags() & (O_ASYNC | O_NONBLOCK), file);
  return absl::OkStatus();
}

void SocketPlan::AddQueuesAndShutdowns() {
  CallPlan& plan = files_.plan_;
  absl::flat_hash_map<uint64_t, const criu::file_entry*> by_inode;
  for (const auto& file : files_.state_.files()) {
    if (file.has_usk()) by_inode[file.usk().ino()] = &file;
  }
  for (const auto& packet : files_.state_.packets()) {
    const criu::file_entry* to = files_.files_.Find(packet.entry().id_for());
    if (to == nullptr || !to->has_usk()) continue;
    const auto peer = by_inode.find(to->usk().peer());
    if (peer == by_inode.end() || files_.Descriptors(peer->second->id()).empty()) continue;
    const int from = static_cast<int>(files_.Descriptors(peer->second->id()).front()->fd());
    plan.Expect(plan.Call(SYS_sendto,
                          {from, plan.Bytes(packet.data()), uint64_t{packet.data().size()},
                           MSG_DONTWAIT, 0, 0},
                          absl::StrCat("queue of ", files_.Name(*to))),
                static_cast<int64_t>(packet.data().size()));
  }
  // The process may have made a buffer smaller than what it holds.
  for (const auto& file : files_.state_.files()) {
    const auto& descriptors = files_.Descriptors(file.id());
    if (!file.has_usk() || descriptors.empty() || files_.state_.packets().empty() ||
        !SetsSendBuffer(file.usk().opts(), /*is_unix=*/true)) {
      continue;
    }
    SetOption(static_cast<int>(descriptors.front()->fd()), SOL_SOCKET, SO_SNDBUFFORCE,
              static_cast<int>(file.usk().opts().so_sndbuf() / kDoubled), files_.Name(file));
  }
  for (const auto& file : files_.state_.files()) {
    const auto& descriptors = files_.Descriptors(file.id());
    if (!file.has_usk() || descriptors.empty() || file.usk().shutdown() == criu::NONE ||
        file.usk().state() != images::kSocketEstablished) {
      continue;
    }
    const int how = static_cast<int>(file.usk().shutdown()) - 1;  // SHUT_RD is 0
    plan.Call(SYS_shutdown, {static_cast<int>(descriptors.front()->fd()), how},
              absl::StrCat("shut down ", files_.Name(file)));
  }
}

void SocketPlan::AddOptions(int fd, const criu::sk_opts_entry& options, bool is_unix,
                            const std::string& name) {
  const int on = 1;
  const auto integer = [&](int option, uint32_t value) {
    SetOption(fd, SOL_SOCKET, option, static_cast<int>(value), name);
  };
  if (SetsSendBuffer(options, is_unix)) {
    const bool queues = is_unix && files_.state_.packets_size() != 0;
    integer(SO_SNDBUFFORCE, queues ? kRoomForAnyQueue : options.so_sndbuf() / kDoubled);
  }
  if ((options.so_buf_lock() & kReceiveBufferLocked) != 0) {
    integer(SO_RCVBUFFORCE, options.so_rcvbuf() / kDoubled);
  }
  if (options.reuseaddr()) SetOption(fd, SOL_SOCKET, SO_REUSEADDR, on, name);
  if (options.so_reuseport()) SetOption(fd, SOL_SOCKET, SO_REUSEPORT, on, name);
  if (options.so_broadcast()) SetOption(fd, SOL_SOCKET, SO_BROADCAST, on, name);
  if (options.so_keepalive()) SetOption(fd, SOL_SOCKET, SO_KEEPALIVE, on, name);
  if (options.so_passcred()) SetOption(fd, SOL_SOCKET, SO_PASSCRED, on, name);
  if (options.so_passsec()) SetOption(fd, SOL_SOCKET, SO_PASSSEC, on, name);
  if (options.so_dontroute()) SetOption(fd, SOL_SOCKET, SO_DONTROUTE, on, name);
  if (options.so_no_check()) SetOption(fd, SOL_SOCKET, SO_NO_CHECK, on, name);
  if (options.so_oobinline() != 0) SetOption(fd, SOL_SOCKET, SO_OOBINLINE, on, name);
  if (options.so_priority() != 0) integer(SO_PRIORITY, options.so_priority());
  if (options.so_rcvlowat() > 1) integer(SO_RCVLOWAT, options.so_rcvlowat());
  if (options.so_mark() != 0) integer(SO_MARK, options.so_mark());
  if (options.has_so_linger()) {
    const linger value = {1, static_cast<int>(options.so_linger())};
    SetOption(fd, SOL_SOCKET, SO_LINGER, value, name);
  }
  const auto timeout = [&](int option, uint64_t seconds, uint64_t microseconds) {
    if (seconds == 0 && microseconds == 0) return;
    const timeval value = {static_cast<time_t>(seconds), static_cast<suseconds_t>(microseconds)};
    SetOption(fd, SOL_SOCKET, option, value, name);
  };
  timeout(SO_SNDTIMEO, options.so_snd_tmo_sec(), options.so_snd_tmo_usec());
  timeout(SO_RCVTIMEO, options.so_rcv_tmo_sec(), options.so_rcv_tmo_usec());
  CallPlan& plan = files_.plan_;
  if (!options.so_bound_dev().empty()) {
    plan.Call(SYS_setsockopt,
              {fd, SOL_SOCKET, SO_BINDTODEVICE, plan.String(options.so_bound_dev()),
               uint64_t{options.so_bound_dev().size() + 1}},
              absl::StrCat("bind ", name, " to the interface ", options.so_bound_dev()));
  }
  if (options.so_filter_size() != 0) {
    sock_fprog program = {};
    program.len = static_cast<unsigned short>(options.so_filter_size());
    program.filter = reinterpret_cast<sock_filter*>(
        plan.Bytes(absl::string_view(reinterpret_cast<const char*>(options.so_filter().data()),
                                     static_cast<size_t>(options.so_filter_size()) * 8)));
    SetOption(fd, SOL_SOCKET, SO_ATTACH_FILTER, program, name);
  }
}

void SocketPlan::AddTcpOptions(int fd, const criu::inet_sk_entry& socket, const std::string& name) {
  const int on = 1;
  const criu::tcp_opts_entry& tcp = socket.tcp_opts();
  const criu::sk_opts_entry& options = socket.opts();
  if (tcp.nodelay()) SetOption(fd, IPPROTO_TCP, TCP_NODELAY, on, name);
  if (tcp.cork()) SetOption(fd, IPPROTO_TCP, TCP_CORK, on, name);
  const auto integer = [&](int option, bool present, uint32_t value) {
    if (present && value != 0) SetOption(fd, IPPROTO_TCP, option, static_cast<int>(value), name);
  };
  integer(TCP_KEEPCNT, tcp.has_keepcnt() || options.has_tcp_keepcnt(),
          tcp.has_keepcnt() ? tcp.keepcnt() : options.tcp_keepcnt());
  integer(TCP_KEEPIDLE, tcp.has_keepidle() || options.has_tcp_keepidle(),
          tcp.has_keepidle() ? tcp.keepidle() : options.tcp_keepidle());
  integer(TCP_KEEPINTVL, tcp.has_keepintvl() || options.has_tcp_keepintvl(),
          tcp.has_keepintvl() ? tcp.keepintvl() : options.tcp_keepintvl());
}

void SocketPlan::AddExtraOptions(int fd, const criu::file_entry& file, const std::string& name) {
  const bool locked = OptionsOf(file).has_so_buf_lock();
  if (const proto::FileExtra* extra = files_.files_.FindExtra(file.id()); extra != nullptr) {
    for (const auto& option : extra->socket_options()) {
      files_.plan_.Call(SYS_setsockopt,
                        {fd, option.level(), option.name(), files_.plan_.Bytes(option.value()),
                         uint64_t{option.value().size()}},
                        absl::StrCat("option ", option.level(), "/", option.name(), " of ", name));
    }
  }
  // Forcing sizes has locked them; say what was locked at the source.
  if (locked && OptionsOf(file).so_buf_lock() != 0) {
    SetOption(fd, SOL_SOCKET, kSoBufLock, static_cast<int>(OptionsOf(file).so_buf_lock()), name);
  }
}

}  // namespace predump::restore::internal
