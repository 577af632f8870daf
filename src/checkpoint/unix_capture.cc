#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/base/unique_fd.h"
#include "src/checkpoint/socket_capture.h"
#include "src/images/image_constants.h"

namespace predump::checkpoint {
namespace {

constexpr uint32_t kShutdownMask = 3;

// sun_path as it is bound: with its NUL for a path, with a leading NUL for an abstract name.
std::string BoundName(int socket) {
  sockaddr_un address = {};
  socklen_t length = sizeof address;
  if (::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &length) != 0 ||
      length <= offsetof(sockaddr_un, sun_path)) {
    return "";
  }
  return std::string(address.sun_path, std::min<size_t>(length - offsetof(sockaddr_un, sun_path),
                                                        sizeof address.sun_path));
}

// Checks that the path of a bound name still stands for this socket, and notes who may connect.
bool FillName(FileContext& context, const Descriptor& descriptor, const UnixSocketFacts& facts,
              criu::unix_sk_entry& body) {
  const std::string name = BoundName(descriptor.duplicate.get());
  body.set_name(name);
  if (name.empty() || name[0] == '\0') return true;
  const std::string path = name.c_str();
  if (path[0] != '/') {
    context.blockers.Add(descriptor.name(),
                         absl::StrCat("a unix socket bound to a relative path (", path, ")"));
    return false;
  }
  struct stat at_path;
  if (::stat(path.c_str(), &at_path) != 0 ||
      static_cast<uint32_t>(at_path.st_ino) != facts.file_inode) {
    context.blockers.Add(descriptor.name(),
                         absl::StrCat("the name of a unix socket was removed (", path, ")"));
    return false;
  }
  body.mutable_file_perms()->set_mode(at_path.st_mode & 07777);
  body.mutable_file_perms()->set_uid(at_path.st_uid);
  body.mutable_file_perms()->set_gid(at_path.st_gid);
  return true;
}

struct Packet {
  std::string data;
  bool has_descriptors = false;
};

// One message at the socket's peek offset, left in the queue.
absl::StatusOr<Packet> Peek(int socket, size_t bytes) {
  Packet packet;
  packet.data.resize(bytes);
  struct iovec vector = {.iov_base = packet.data.data(), .iov_len = packet.data.size()};
  alignas(struct cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * 253)> control;
  struct msghdr message = {};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t n =
      ::recvmsg(socket, &message, MSG_PEEK | MSG_DONTWAIT | MSG_TRUNC | MSG_CMSG_CLOEXEC);
  if (n < 0) return base::ErrnoError(errno, "peek of a unix socket");
  for (auto* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    packet.has_descriptors = true;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
      base::UniqueFd{fd};  // a duplicate made by the peek
    }
  }
  if (static_cast<size_t>(n) > bytes) {
    return absl::DataLossError(absl::StrCat("a message of ", n, " bytes where ", bytes, " fit"));
  }
  packet.data.resize(static_cast<size_t>(n));
  return packet;
}

void AddPacket(FileContext& context, uint32_t file_id, std::string data) {
  proto::SocketPacket* packet = context.state.add_packets();
  packet->mutable_entry()->set_id_for(file_id);
  packet->mutable_entry()->set_length(static_cast<uint32_t>(data.size()));
  packet->set_data(std::move(data));
}

// Sets SO_PEEK_OFF for its lifetime, so that peeks go on from message to message.
class PeekOffset {
 public:
  static absl::StatusOr<PeekOffset> Start(int socket) {
    PREDUMP_ASSIGN_OR_RETURN(const int before, ReadIntOption(socket, SOL_SOCKET, SO_PEEK_OFF));
    const int start = 0;
    if (::setsockopt(socket, SOL_SOCKET, SO_PEEK_OFF, &start, sizeof start) != 0) {
      return base::ErrnoError(errno, "SO_PEEK_OFF");
    }
    return PeekOffset(socket, before);
  }
  PeekOffset(PeekOffset&& other) noexcept
      : socket_(std::exchange(other.socket_, -1)), before_(other.before_) {}
  PeekOffset& operator=(PeekOffset&&) = delete;
  ~PeekOffset() {
    if (socket_ >= 0) {
      (void)::setsockopt(socket_, SOL_SOCKET, SO_PEEK_OFF, &before_, sizeof before_);
    }
  }

 private:
  PeekOffset(int socket, int before) : socket_(socket), before_(before) {}
  int socket_;
  int before_;
};

// The queue of a socket that keeps message boundaries. An empty message does not move the peek
// offset on, so it cannot be told from the one after it.
absl::Status CopyMessages(FileContext& context, const Descriptor& descriptor, uint32_t file_id,
                          size_t largest) {
  const int socket = descriptor.duplicate.get();
  PREDUMP_ASSIGN_OR_RETURN(const PeekOffset offset, PeekOffset::Start(socket));
  while (true) {
    auto packet = Peek(socket, largest);
    if (base::ErrnoOf(packet.status()) == EAGAIN) return absl::OkStatus();
    PREDUMP_RETURN_IF_ERROR(packet);
    if (packet->has_descriptors || packet->data.empty()) {
      context.blockers.Add(descriptor.name(), packet->has_descriptors
                                                  ? "descriptors travel in its queue (SCM_RIGHTS)"
                                                  : "an empty message waits in its queue");
      return absl::OkStatus();
    }
    AddPacket(context, file_id, std::move(packet->data));
  }
}

// The queue of a stream: one peek gives all of it, unless something other than bytes is between.
absl::Status CopyStream(FileContext& context, const Descriptor& descriptor, uint32_t file_id,
                        size_t bytes) {
  PREDUMP_ASSIGN_OR_RETURN(Packet packet, Peek(descriptor.duplicate.get(), bytes));
  if (packet.has_descriptors || packet.data.size() != bytes) {
    context.blockers.Add(descriptor.name(), packet.has_descriptors
                                                ? "descriptors travel in its queue (SCM_RIGHTS)"
                                                : "data of several senders waits in its queue");
    return absl::OkStatus();
  }
  AddPacket(context, file_id, std::move(packet.data));
  return absl::OkStatus();
}

absl::Status CopyQueue(FileContext& context, const Descriptor& descriptor,
                       const criu::unix_sk_entry& body) {
  const int socket = descriptor.duplicate.get();
  int bytes = 0;
  if (::ioctl(socket, SIOCINQ, &bytes) != 0) return base::ErrnoError(errno, "SIOCINQ");
  if (body.type() == SOCK_STREAM) {
    return bytes == 0 ? absl::OkStatus()
                      : CopyStream(context, descriptor, body.id(), static_cast<size_t>(bytes));
  }
  char first;
  const ssize_t any = ::recv(socket, &first, 1, MSG_PEEK | MSG_DONTWAIT);
  if (any < 0 && errno == EAGAIN) return absl::OkStatus();
  if (bytes == 0 && (body.shutdown() & criu::READ) != 0) return absl::OkStatus();  // end of file
  // No message is larger than the sender's buffer may be.
  PREDUMP_ASSIGN_OR_RETURN(const int largest, ReadIntOption(socket, SOL_SOCKET, SO_SNDBUF));
  const size_t room = static_cast<size_t>(std::max({largest, bytes, 1 << 18}));
  return CopyMessages(context, descriptor, body.id(), room);
}

const criu::unix_sk_entry& UnixBody(const FileContext& context, size_t index) {
  return context.state.files(static_cast<int>(context.file_ids[index]) - 1).usk();
}

// Connected sockets are made anew by socketpair(2): why that will not do for this one. `mutual`:
// its peer is connected to it; `users_of_name`: sockets of the process with the same name.
std::optional<std::string> WhyConnectionStays(const criu::unix_sk_entry& body, bool mutual,
                                              int users_of_name) {
  if (body.peer() == 0 || body.state() != images::kSocketEstablished) return std::nullopt;
  if (!mutual) return "a unix socket that is connected one way";
  const std::string& name = body.name();
  // What accept(2) returns has the name of the socket that listens.
  if (!name.empty() && name[0] != '\0') {
    return absl::StrCat("a unix socket with a connection and a path (", name.c_str(), ")");
  }
  if (!name.empty() && users_of_name > 1) {
    return absl::StrCat("a unix socket with a connection and the name of another (@",
                        name.substr(1), ")");
  }
  return std::nullopt;
}

}  // namespace

absl::StatusOr<uint32_t> AddUnixSocket(FileContext& context, const Descriptor& descriptor,
                                       const SocketKind& kind) {
  if (context.diag == nullptr) {
    context.blockers.Add(descriptor.name(), absl::StrCat("the peer of a unix socket is not told: ",
                                                         context.diag_status.message()));
    return 0;
  }
  const int socket = descriptor.duplicate.get();
  const uint32_t inode = static_cast<uint32_t>(descriptor.stat.st_ino);
  PREDUMP_ASSIGN_OR_RETURN(const UnixSocketFacts facts, context.diag->LookUp(inode));
  criu::file_entry entry;
  auto& body = StartEntry(entry, criu::UNIXSK, entry.mutable_usk(), descriptor);
  body.set_ino(inode);
  body.set_type(static_cast<uint32_t>(kind.type));
  body.set_state(facts.state);
  body.set_uflags(0);
  const bool listening = facts.state == images::kSocketListening;
  body.set_backlog(listening ? facts.send_queue : 0);
  body.set_peer(facts.peer_inode);
  if (listening && facts.receive_queue > 0) {
    context.blockers.Add(descriptor.name(),
                         absl::StrCat(facts.receive_queue, " connections wait to be accepted"));
    return 0;
  }
  if ((facts.shutdown & kShutdownMask) != 0) {
    body.set_shutdown(static_cast<criu::sk_shutdown>(facts.shutdown & kShutdownMask));
  }
  if (!FillName(context, descriptor, facts, body)) return 0;
  PREDUMP_RETURN_IF_ERROR(FillCommonOptions(socket, *body.mutable_opts()));
  const uint32_t id = context.files.builder().AddFile(std::move(entry));
  proto::FileExtra& extra = context.files.builder().Extra(id);
  extra.set_inode(inode);
  FillOtherOptions(socket, context.fresh_options, kind, facts.state, extra);
  return id;
}

absl::Status FillUnixQueues(FileContext& context) {
  absl::flat_hash_map<uint32_t, size_t> by_inode;
  absl::flat_hash_map<std::string, int> users_of_name;
  for (size_t i = 0; i < context.descriptors.size(); ++i) {
    if (context.descriptors[i].shares_with != i || context.file_ids[i] == 0) continue;
    const auto& file = context.state.files(static_cast<int>(context.file_ids[i]) - 1);
    if (file.type() != criu::UNIXSK) continue;
    by_inode.emplace(file.usk().ino(), i);
    ++users_of_name[file.usk().name()];
  }
  // In the order of the descriptors, so that the same process gives the same state.
  std::vector<size_t> sockets;
  for (const auto& [inode, index] : by_inode) sockets.push_back(index);
  std::sort(sockets.begin(), sockets.end());
  for (const size_t i : sockets) {
    const Descriptor& descriptor = context.descriptors[i];
    const criu::unix_sk_entry body =
        context.state.files(static_cast<int>(context.file_ids[i]) - 1).usk();
    const bool connected = body.state() == images::kSocketEstablished && body.type() != SOCK_DGRAM;
    if ((connected && body.peer() == 0) || (body.peer() != 0 && !by_inode.contains(body.peer()))) {
      context.blockers.Add(descriptor.name(), body.peer() == 0
                                                  ? "a unix socket whose peer has closed"
                                                  : "a unix socket connected to another process");
      continue;
    }
    const auto peer = by_inode.find(body.peer());
    const bool mutual =
        peer != by_inode.end() && UnixBody(context, peer->second).peer() == body.ino();
    if (const auto why = WhyConnectionStays(body, mutual, users_of_name[body.name()]);
        why.has_value()) {
      context.blockers.Add(descriptor.name(), *why);
      continue;
    }
    if (!context.frozen || body.state() == images::kSocketListening) continue;
    const int before = context.state.packets_size();
    PREDUMP_RETURN_IF_ERROR(CopyQueue(context, descriptor, body));
    // Only a pair's other end can send them again as the one they came from.
    if (context.state.packets_size() != before && body.type() == SOCK_DGRAM && !mutual) {
      context.blockers.Add(descriptor.name(), "unread messages of other sockets wait in it");
    }
  }
  return absl::OkStatus();
}

}  // namespace predump::checkpoint
