// Open files, descriptors, contents of pipes and sockets.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include <cstddef>
#include <cstdint>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "src/base/errors.h"
#include "src/images/image_constants.h"
#include "src/images/state_validation_internal.h"

namespace predump::images::internal {
namespace {

constexpr int kMaxBuildIdWords = 16;
constexpr int kMaxSocketOptions = 64;
constexpr size_t kMaxOptionBytes = 1024;
constexpr uint32_t kMaxPipeBytes = 1u << 30;

// What is known of all files while they are checked one by one.
struct FileSet {
  absl::flat_hash_map<uint32_t, const criu::unix_sk_entry*> unix_by_inode;
  absl::flat_hash_set<uint32_t> pipe_ids;
  absl::flat_hash_set<uint32_t> descriptors;
  int epoll_entries = 0;
};

absl::Status ValidateRegular(const criu::reg_file_entry& file, absl::string_view where) {
  if (!IsAbsolutePath(file.name())) return Bad(where, ": path");
  if (file.build_id_size() > kMaxBuildIdWords) return Bad(where, ": build-id");
  if (file.pos() > INT64_MAX && file.pos() != UINT64_MAX) return Bad(where, ": offset");
  if (file.ext()) return Bad(where, ": external file");
  return absl::OkStatus();
}

absl::Status ValidateTimer(const criu::timerfd_entry& timer, absl::string_view where) {
  switch (timer.clockid()) {
    case CLOCK_REALTIME:
    case CLOCK_MONOTONIC:
    case CLOCK_BOOTTIME:
    case CLOCK_REALTIME_ALARM:
    case CLOCK_BOOTTIME_ALARM:
      break;
    default:
      return Bad(where, ": clock ", timer.clockid());
  }
  if (timer.vnsec() >= 1'000'000'000 || timer.insec() >= 1'000'000'000 ||
      timer.vsec() > INT64_MAX || timer.isec() > INT64_MAX) {
    return Bad(where, ": time");
  }
  return absl::OkStatus();
}

absl::Status ValidateInet(const criu::inet_sk_entry& socket, absl::string_view where) {
  const int words = socket.family() == AF_INET ? 1 : socket.family() == AF_INET6 ? 4 : -1;
  if (words < 0) return Bad(where, ": family ", socket.family());
  if (socket.type() != SOCK_STREAM && socket.type() != SOCK_DGRAM) {
    return Bad(where, ": type ", socket.type());
  }
  if ((socket.src_addr_size() != words && socket.src_addr_size() != 0) ||
      (socket.dst_addr_size() != words && socket.dst_addr_size() != 0) ||
      socket.src_port() > 65535 || socket.dst_port() > 65535) {
    return Bad(where, ": address");
  }
  if (socket.opts().so_bound_dev().size() > 15) return Bad(where, ": interface");
  return absl::OkStatus();
}

absl::Status ValidateUnix(const criu::unix_sk_entry& socket, const FileSet& set,
                          absl::string_view where) {
  if (socket.type() != SOCK_STREAM && socket.type() != SOCK_DGRAM &&
      socket.type() != SOCK_SEQPACKET) {
    return Bad(where, ": type ", socket.type());
  }
  // sun_path, and the NUL after it that a full one is stored with.
  if (socket.name().size() > sizeof(sockaddr_un::sun_path) + 1) return Bad(where, ": name");
  if (socket.peer() != 0 && !set.unix_by_inode.contains(socket.peer())) {
    return Bad(where, ": its peer is not in the state");
  }
  return absl::OkStatus();
}

absl::Status ValidateEpoll(const criu::eventpoll_file_entry& epoll, FileSet& set,
                           absl::string_view where, const StateLimits& limits) {
  set.epoll_entries += epoll.tfd_size();
  if (epoll.tfd_size() > limits.max_epoll_entries || set.epoll_entries > limits.max_epoll_entries) {
    return Bad(where, ": too many entries");
  }
  absl::flat_hash_set<uint32_t> targets;
  for (const auto& entry : epoll.tfd()) {
    if (!set.descriptors.contains(entry.tfd())) {
      return Bad(where, ": watches descriptor ", entry.tfd(), ", which is not there");
    }
    if (!targets.insert(entry.tfd()).second) return Bad(where, ": an entry twice");
  }
  return absl::OkStatus();
}

absl::Status ValidateFile(const criu::file_entry& file, const FileIndex& files, FileSet& set,
                          const StateLimits& limits) {
  const std::string where = absl::StrCat("file ", file.id());
  if (file.id() == 0 || files.Find(file.id()) != &file) return Bad(where, ": id used twice");
  if (BodyId(file) != file.id()) return Bad(where, ": body and type do not agree");
  switch (file.type()) {
    case criu::REG:
      return ValidateRegular(file.reg(), where);
    case criu::TIMERFD:
      return ValidateTimer(file.tfd(), where);
    case criu::INETSK:
      return ValidateInet(file.isk(), where);
    case criu::UNIXSK:
      return ValidateUnix(file.usk(), set, where);
    case criu::EVENTPOLL:
      return ValidateEpoll(file.epfd(), set, where, limits);
    case criu::FIFO:
      if (files.FindRegular(file.fifo().regf_id()) == nullptr) return Bad(where, ": path");
      return absl::OkStatus();
    case criu::TTY:
      if (files.FindRegular(file.tty().regf_id()) == nullptr) return Bad(where, ": path");
      return absl::OkStatus();
    default:
      return absl::OkStatus();
  }
}

absl::Status CollectFiles(const proto::ProcessState& state, FileSet& set) {
  for (const auto& file : state.files()) {
    if (file.has_pipe()) set.pipe_ids.insert(file.pipe().pipe_id());
    if (file.has_fifo()) set.pipe_ids.insert(file.fifo().pipe_id());
    if (file.has_usk() && !set.unix_by_inode.try_emplace(file.usk().ino(), &file.usk()).second) {
      return Bad("unix socket ", file.usk().ino(), " twice");
    }
  }
  for (const auto& [inode, socket] : set.unix_by_inode) {
    if (socket->peer() == 0 || socket->state() != kSocketEstablished ||
        socket->type() == SOCK_DGRAM) {
      continue;
    }
    const auto peer = set.unix_by_inode.find(socket->peer());
    if (peer == set.unix_by_inode.end() || peer->second->peer() != inode) {
      return Bad("unix sockets ", inode, " and ", socket->peer(), " are not a pair");
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateDescriptors(const proto::ProcessState& state, const FileIndex& files,
                                 FileSet& set, const StateLimits& limits) {
  if (state.descriptors_size() > limits.max_descriptors) {
    return Bad(state.descriptors_size(), " descriptors");
  }
  for (const auto& entry : state.descriptors()) {
    const std::string where = absl::StrCat("fd ", entry.fd());
    if (entry.fd() > limits.max_descriptor_number) return Bad(where, ": number");
    if (!set.descriptors.insert(entry.fd()).second) return Bad(where, " twice");
    const criu::file_entry* file = files.Find(entry.id());
    if (file == nullptr) return Bad(where, ": file ", entry.id(), " is not in the state");
    if (file->type() != entry.type()) return Bad(where, ": type");
    if (entry.flags() > FD_CLOEXEC) return Bad(where, ": flags");
  }
  return absl::OkStatus();
}

absl::Status ValidatePipes(const proto::ProcessState& state, const FileSet& set,
                           size_t& queued_bytes) {
  absl::flat_hash_set<uint32_t> seen;
  for (const auto& pipe : state.pipes()) {
    const std::string where = absl::StrCat("pipe ", pipe.entry().pipe_id());
    if (!set.pipe_ids.contains(pipe.entry().pipe_id())) return Bad(where, ": nobody has it open");
    if (!seen.insert(pipe.entry().pipe_id()).second) return Bad(where, ": contents twice");
    if (pipe.entry().bytes() != pipe.data().size()) return Bad(where, ": length");
    if (pipe.entry().size() > kMaxPipeBytes || pipe.data().size() > pipe.entry().size()) {
      return Bad(where, ": capacity");
    }
    uint64_t packets = 0;
    for (const uint32_t bytes : pipe.packet_bytes()) packets += bytes;
    if (pipe.packet_bytes_size() != 0 && packets != pipe.data().size()) {
      return Bad(where, ": packets");
    }
    queued_bytes += pipe.data().size();
  }
  return absl::OkStatus();
}

absl::Status ValidatePackets(const proto::ProcessState& state, const FileIndex& files,
                             const StateLimits& limits, size_t& queued_bytes) {
  if (state.packets_size() > limits.max_packets) return Bad(state.packets_size(), " packets");
  for (const auto& packet : state.packets()) {
    const criu::file_entry* file = files.Find(packet.entry().id_for());
    if (file == nullptr || file->type() != criu::UNIXSK) return Bad("a packet for no socket");
    if (packet.entry().length() != packet.data().size()) return Bad("length of a packet");
    if (packet.entry().scm_size() != 0) return Bad("a packet with control messages");
    queued_bytes += packet.data().size();
  }
  return absl::OkStatus();
}

absl::Status ValidateExtras(const proto::ProcessState& state, const FileIndex& files) {
  for (const auto& extra : state.file_extras()) {
    if (files.Find(extra.id()) == nullptr || files.FindExtra(extra.id()) != &extra) {
      return Bad("extra of file ", extra.id());
    }
    if (extra.socket_options_size() > kMaxSocketOptions) return Bad("socket options");
    for (const auto& option : extra.socket_options()) {
      if (option.value().size() > kMaxOptionBytes) return Bad("a socket option");
    }
  }
  for (const std::string* path : {&state.extra().exe_path(), &state.extra().working_directory(),
                                  &state.extra().root_directory()}) {
    if (!path->empty() && !IsAbsolutePath(*path)) return Bad("a path");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateFiles(const proto::ProcessState& state, const FileIndex& files,
                           const StateLimits& limits) {
  if (state.files_size() > limits.max_files) return Bad(state.files_size(), " files");
  FileSet set;
  PREDUMP_RETURN_IF_ERROR(CollectFiles(state, set));
  PREDUMP_RETURN_IF_ERROR(ValidateDescriptors(state, files, set, limits));
  for (const auto& file : state.files()) {
    PREDUMP_RETURN_IF_ERROR(ValidateFile(file, files, set, limits));
  }
  if (!state.has_fs() || files.FindRegular(state.fs().cwd_id()) == nullptr ||
      files.FindRegular(state.fs().root_id()) == nullptr || state.fs().umask() > 0777) {
    return Bad("working or root directory");
  }
  size_t queued_bytes = 0;
  PREDUMP_RETURN_IF_ERROR(ValidatePipes(state, set, queued_bytes));
  PREDUMP_RETURN_IF_ERROR(ValidatePackets(state, files, limits, queued_bytes));
  if (queued_bytes > limits.max_queued_bytes)
    return Bad(queued_bytes, " bytes in pipes and queues");
  return ValidateExtras(state, files);
}

}  // namespace predump::images::internal
