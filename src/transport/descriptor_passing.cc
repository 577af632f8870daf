#include "src/transport/descriptor_passing.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "src/base/errors.h"
#include "src/transport/socket.h"

namespace predump::transport {
namespace {

constexpr char kReady = 'r';

// Room for one descriptor, aligned as the kernel wants it.
struct alignas(cmsghdr) ControlBuffer {
  char bytes[CMSG_SPACE(sizeof(int))] = {};
};

}  // namespace

absl::StatusOr<std::pair<base::UniqueFd, base::UniqueFd>> MakeDescriptorChannel() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) != 0) {
    return base::ErrnoError(errno, "socketpair");
  }
  return std::pair(base::UniqueFd(fds[0]), base::UniqueFd(fds[1]));
}

absl::Status SendDescriptor(int channel, int fd) {
  char byte = 0;
  iovec payload = {&byte, 1};
  ControlBuffer control;
  msghdr message = {};
  message.msg_iov = &payload;
  message.msg_iovlen = 1;
  message.msg_control = control.bytes;
  message.msg_controllen = sizeof control.bytes;
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof fd);
  ::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  for (;;) {
    const ssize_t n = ::sendmsg(channel, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n == 1) return absl::OkStatus();
    if (n < 0 && errno == EINTR) continue;
    return n < 0 ? base::ErrnoError(errno, "hand a connection to its session")
                 : absl::DataLossError("handing over a connection made no progress");
  }
}

absl::StatusOr<std::optional<base::UniqueFd>> ReceiveDescriptor(int channel) {
  char byte = 0;
  iovec payload = {&byte, 1};
  ControlBuffer control;
  msghdr message = {};
  message.msg_iov = &payload;
  message.msg_iovlen = 1;
  message.msg_control = control.bytes;
  message.msg_controllen = sizeof control.bytes;
  ssize_t n;
  do {
    n = ::recvmsg(channel, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  } while (n < 0 && errno == EINTR);
  if (n < 0 && errno == EAGAIN) return std::nullopt;
  if (n < 0) return base::ErrnoError(errno, "receive a connection");
  if (n == 0) return absl::UnavailableError("the listener is gone");
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header == nullptr || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS ||
      header->cmsg_len != CMSG_LEN(sizeof(int))) {
    return absl::DataLossError("a message without a descriptor");
  }
  int fd;
  ::memcpy(&fd, CMSG_DATA(header), sizeof fd);
  return base::UniqueFd(fd);
}

absl::Status SendReady(int channel) {
  for (;;) {
    if (::send(channel, &kReady, sizeof kReady, MSG_NOSIGNAL) == sizeof kReady) {
      return absl::OkStatus();
    }
    if (errno != EINTR) return base::ErrnoError(errno, "say that connections may come");
  }
}

absl::Status AwaitReady(int channel, Deadline deadline, int stop_fd) {
  PREDUMP_ASSIGN_OR_RETURN(const WaitResult result, WaitFor(channel, POLLIN, deadline, stop_fd));
  if (result == WaitResult::kOther) return absl::CancelledError("told to give up");
  if (result == WaitResult::kDeadline)
    return absl::DeadlineExceededError("it is not ready in time");
  char word = 0;
  const ssize_t n = ::recv(channel, &word, sizeof word, MSG_DONTWAIT);
  if (n == 0 || (n < 0 && errno == ECONNRESET)) {
    return absl::UnavailableError("it ended before it was ready");
  }
  if (n < 0) return base::ErrnoError(errno, "wait until connections may come");
  return word == kReady ? absl::OkStatus() : absl::DataLossError("it did not say that it is ready");
}

}  // namespace predump::transport
