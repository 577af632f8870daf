#include "src/pageserver/half_open.h"

#include <endian.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "absl/status/status.h"
#include "src/base/errors.h"
#include "src/transport/page_server_protocol.h"

namespace predump::pageserver {

absl::StatusOr<HalfOpen::Kind> HalfOpen::Advance() {
  PREDUMP_ASSIGN_OR_RETURN(const bool has_magic, FillTo(kMagicBytes));
  if (has_magic) {
    uint64_t magic;
    ::memcpy(&magic, preamble_.data(), sizeof magic);
    magic = le64toh(magic);
    if (magic == transport::kControlMagic) return Kind::kControl;
    if (transport::page_server::IsFirstMessage(
            reinterpret_cast<const unsigned char*>(preamble_.data()))) {
      return Kind::kCriu;
    }
    if (magic != transport::kDataMagic) {
      return absl::DataLossError(
          "what it sent is neither predump's protocol nor that of CRIU's page server");
    }
    PREDUMP_ASSIGN_OR_RETURN(const bool complete, FillTo(preamble_.size()));
    if (complete) return Kind::kData;
  }
  if (deadline_.passed()) {
    return absl::DeadlineExceededError("it did not say in time what it wants");
  }
  return Kind::kUndecided;
}

std::string HalfOpen::token() const {
  return std::string(preamble_.data() + kMagicBytes, transport::kTokenBytes);
}

absl::StatusOr<bool> HalfOpen::FillTo(size_t size) {
  while (filled_ < size) {
    const ssize_t n =
        ::recv(socket_.get(), preamble_.data() + filled_, size - filled_, MSG_DONTWAIT);
    if (n > 0) {
      filled_ += static_cast<size_t>(n);
    } else if (n == 0) {
      return absl::UnavailableError("it left without having said what it wants");
    } else if (errno == EAGAIN) {
      return false;
    } else if (errno != EINTR) {
      return base::ErrnoError(errno, "receive");
    }
  }
  return true;
}

}  // namespace predump::pageserver
