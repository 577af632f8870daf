#include "src/checkpoint/socket_diag.h"

#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"

namespace predump::checkpoint {
namespace {

base::UniqueFd OpenNetlink() {
  return base::UniqueFd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG));
}

// A socket belongs to the namespace it was made in for good, so a thread that lives only for this
// goes there and comes to nothing afterwards; ours stays where it is.
absl::StatusOr<base::UniqueFd> OpenNetlinkIn(int namespace_fd) {
  base::UniqueFd netlink;
  int error = 0;
  std::thread([&] {
    if (::setns(namespace_fd, CLONE_NEWNET) != 0) {
      error = errno;
      return;
    }
    netlink = OpenNetlink();
    if (!netlink.valid()) error = errno;
  }).join();
  if (error != 0)
    return base::ErrnoError(error, "netlink socket in the process's network namespace");
  return netlink;
}

template <typename T>
T ReadValue(const void* data) {
  T value;
  std::memcpy(&value, data, sizeof value);
  return value;
}

UnixSocketFacts ParseAnswer(const struct nlmsghdr* header) {
  const auto* message = static_cast<const struct unix_diag_msg*>(NLMSG_DATA(header));
  UnixSocketFacts facts;
  facts.state = message->udiag_state;
  size_t left = header->nlmsg_len - NLMSG_LENGTH(sizeof *message);
  const auto* attribute = reinterpret_cast<const struct rtattr*>(message + 1);
  for (; RTA_OK(attribute, left); attribute = RTA_NEXT(attribute, left)) {
    const void* data = RTA_DATA(attribute);
    const size_t size = RTA_PAYLOAD(attribute);
    if (attribute->rta_type == UNIX_DIAG_PEER && size >= 4) {
      facts.peer_inode = ReadValue<uint32_t>(data);
    } else if (attribute->rta_type == UNIX_DIAG_RQLEN && size >= sizeof(struct unix_diag_rqlen)) {
      const auto queues = ReadValue<struct unix_diag_rqlen>(data);
      facts.receive_queue = queues.udiag_rqueue;
      facts.send_queue = queues.udiag_wqueue;
    } else if (attribute->rta_type == UNIX_DIAG_SHUTDOWN && size >= 1) {
      facts.shutdown = ReadValue<uint8_t>(data);
    } else if (attribute->rta_type == UNIX_DIAG_VFS && size >= sizeof(struct unix_diag_vfs)) {
      facts.file_inode = ReadValue<struct unix_diag_vfs>(data).udiag_vfs_ino;
    }
  }
  return facts;
}

}  // namespace

absl::StatusOr<SocketDiag> SocketDiag::Open(const kernel::ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(const base::UniqueFd theirs, process.OpenProc("ns/net", O_RDONLY));
  struct stat their_stat;
  struct stat our_stat;
  if (::fstat(theirs.get(), &their_stat) != 0 || ::stat("/proc/self/ns/net", &our_stat) != 0) {
    return base::ErrnoError(errno, "stat of a network namespace");
  }
  if (their_stat.st_ino == our_stat.st_ino) {
    base::UniqueFd netlink = OpenNetlink();
    if (!netlink.valid()) return base::ErrnoError(errno, "socket NETLINK_SOCK_DIAG");
    return SocketDiag(std::move(netlink));
  }
  PREDUMP_ASSIGN_OR_RETURN(base::UniqueFd netlink, OpenNetlinkIn(theirs.get()));
  return SocketDiag(std::move(netlink));
}

absl::StatusOr<UnixSocketFacts> SocketDiag::LookUp(uint32_t inode) const {
  struct {
    struct nlmsghdr header;
    struct unix_diag_req request;
  } query = {};
  query.header.nlmsg_len = sizeof query;
  query.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
  query.header.nlmsg_flags = NLM_F_REQUEST;
  query.request.sdiag_family = AF_UNIX;
  query.request.udiag_states = ~0u;
  query.request.udiag_ino = inode;
  query.request.udiag_show = UDIAG_SHOW_PEER | UDIAG_SHOW_RQLEN | UDIAG_SHOW_VFS;
  query.request.udiag_cookie[0] = ~0u;  // any
  query.request.udiag_cookie[1] = ~0u;
  if (::send(netlink_.get(), &query, sizeof query, 0) < 0) {
    return base::ErrnoError(errno, "send to NETLINK_SOCK_DIAG");
  }
  alignas(struct nlmsghdr) std::array<char, 8192> answer;
  const ssize_t received = ::recv(netlink_.get(), answer.data(), answer.size(), 0);
  if (received < 0) return base::ErrnoError(errno, "recv from NETLINK_SOCK_DIAG");
  const auto* header = reinterpret_cast<const struct nlmsghdr*>(answer.data());
  if (!NLMSG_OK(header, static_cast<size_t>(received))) {
    return absl::DataLossError("NETLINK_SOCK_DIAG: answer of a wrong length");
  }
  if (header->nlmsg_type == NLMSG_ERROR) {
    const int error = -static_cast<const struct nlmsgerr*>(NLMSG_DATA(header))->error;
    if (error == ENOENT) return absl::NotFoundError(absl::StrCat("no unix socket ", inode));
    return base::ErrnoError(error == EINVAL ? ENOSYS : error, "unix_diag of socket ", inode);
  }
  if (header->nlmsg_len < NLMSG_LENGTH(sizeof(struct unix_diag_msg))) {
    return absl::DataLossError("NETLINK_SOCK_DIAG: answer of a wrong length");
  }
  return ParseAnswer(header);
}

}  // namespace predump::checkpoint
