#include "src/transport/page_server_client.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <bit>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/transport/socket.h"

// Messages are written as they lie in memory.
static_assert(std::endian::native == std::endian::little);

namespace predump::transport {
namespace {

// images::PageFlag, which lives a floor above the wire.
constexpr uint32_t kParentFlag = 1;
constexpr uint32_t kPresentFlag = 4;
// What the old header's 32 bits could hold, less so that a page count in bytes fits everywhere.
constexpr uint64_t kMostPagesAtOnce = 1u << 20;

absl::Status Ended() { return absl::UnavailableError("the server ended the connection"); }

// Headers and small runs leave together; only a matter of speed, and only with TCP.
void Cork(int socket, bool on) {
  const int value = on ? 1 : 0;
  static_cast<void>(::setsockopt(socket, IPPROTO_TCP, TCP_CORK, &value, sizeof value));
}

}  // namespace

absl::Status PageServerClient::Open(Deadline deadline) {
  PREDUMP_RETURN_IF_ERROR(SetBlocking(fd(), true));
  PREDUMP_RETURN_IF_ERROR(SetSendTimeout(fd(), kStallTimeout));
  page_server::Message open;
  open.command = page_server::kOpen2;
  open.object = object_;
  PREDUMP_RETURN_IF_ERROR(Send(open, /*more=*/false));
  std::byte answer = {};
  PREDUMP_RETURN_IF_ERROR(Receive({&answer, 1}, deadline));
  has_parent_ = answer != std::byte{0};
  Cork(fd(), true);
  return absl::OkStatus();
}

absl::Status PageServerClient::Hole(base::AddressRange range) {
  return AddRange(kParentFlag, range);
}

absl::Status PageServerClient::PagesHeader(base::AddressRange range) {
  if (range.pages().value() > kMostPagesAtOnce) {
    return absl::InvalidArgumentError("too many pages for one message");
  }
  PREDUMP_RETURN_IF_ERROR(AddRange(kPresentFlag, range));
  bytes_sent_ += range.size();
  return absl::OkStatus();
}

absl::Status PageServerClient::AddRange(uint32_t flags, base::AddressRange range) {
  page_server::Message message;
  message.command = flags << 16 | page_server::kAddFlags;
  message.object = object_;
  message.address = range.start().value();
  for (uint64_t left = range.pages().value(); left > 0; left -= message.pages) {
    message.pages = std::min(left, kMostPagesAtOnce);
    PREDUMP_RETURN_IF_ERROR(Send(message, /*more=*/true));
    message.address += message.pages * base::PageSize();
  }
  return absl::OkStatus();
}

absl::Status PageServerClient::Close(Deadline deadline) {
  page_server::Message close;
  close.command = page_server::kClose;
  PREDUMP_RETURN_IF_ERROR(Send(close, /*more=*/false));
  Cork(fd(), false);
  int32_t status = 0;
  PREDUMP_RETURN_IF_ERROR(Receive(std::as_writable_bytes(std::span(&status, 1)), deadline));
  if (status != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("the server says that it could not store the pages (status ", status, ")"));
  }
  // It waits for our end, and writes its last entries then: its own end says that it has.
  if (::shutdown(fd(), SHUT_WR) != 0 && errno != ENOTCONN) {
    return base::ErrnoError(errno, "shutdown of the connection");
  }
  std::byte more = {};
  const absl::Status ended = Receive({&more, 1}, deadline);
  if (ended.ok()) return absl::DataLossError("the server goes on sending after its last answer");
  return absl::IsUnavailable(ended) ? absl::OkStatus() : ended;
}

absl::Status PageServerClient::Explain(const absl::Status& push_error) const {
  return absl::IsUnavailable(push_error) ? Ended() : push_error;
}

absl::Status PageServerClient::Send(const page_server::Message& message, bool more) {
  const auto bytes = page_server::Encode(message, header_);
  size_t done = 0;
  const auto size = static_cast<size_t>(header_);
  while (done < size) {
    const ssize_t n =
        ::send(fd(), bytes.data() + done, size - done, MSG_NOSIGNAL | (more ? MSG_MORE : 0));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      return absl::DeadlineExceededError("the server has stopped reading");
    }
    if (n < 0) return Explain(base::ErrnoError(errno, "send to the server"));
    done += static_cast<size_t>(n);
  }
  bytes_sent_ += base::ByteCount(size);
  return absl::OkStatus();
}

absl::Status PageServerClient::Receive(std::span<std::byte> out, Deadline deadline) {
  while (!out.empty()) {
    PREDUMP_ASSIGN_OR_RETURN(const WaitResult result, WaitFor(fd(), POLLIN, deadline));
    if (result == WaitResult::kDeadline) {
      return absl::DeadlineExceededError("the server did not answer in time");
    }
    const ssize_t n = ::recv(fd(), out.data(), out.size(), MSG_DONTWAIT);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n < 0) return Explain(base::ErrnoError(errno, "receive from the server"));
    if (n == 0) return Ended();
    out = out.subspan(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

}  // namespace predump::transport
