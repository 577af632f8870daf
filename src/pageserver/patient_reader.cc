#include "src/pageserver/patient_reader.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/transport/deadline.h"
#include "src/transport/socket.h"

namespace predump::pageserver {
namespace {

constexpr size_t kBufferBytes = 1u << 16;

absl::Status Left() { return absl::UnavailableError("it left in the middle of a message"); }

}  // namespace

absl::Status PatientReader::Wait() const {
  PREDUMP_ASSIGN_OR_RETURN(
      const transport::WaitResult woken,
      transport::WaitFor(socket_, POLLIN, transport::Deadline::After(patience_), stop_fd_));
  switch (woken) {
    case transport::WaitResult::kReady:
      return absl::OkStatus();
    case transport::WaitResult::kOther:
      return absl::CancelledError("the server ends");
    case transport::WaitResult::kDeadline:
      break;
  }
  return absl::DeadlineExceededError(
      absl::StrCat("it said nothing for ", absl::FormatDuration(patience_)));
}

absl::Status PatientReader::Read(void* to, size_t size) const {
  for (size_t done = 0; done < size;) {
    const ssize_t n = ::recv(socket_, static_cast<char*>(to) + done, size - done, MSG_DONTWAIT);
    if (n > 0) {
      done += static_cast<size_t>(n);
    } else if (n == 0) {
      return done == 0 ? absl::OutOfRangeError("it left") : Left();
    } else if (errno == EAGAIN) {
      PREDUMP_RETURN_IF_ERROR(Wait());
    } else if (errno != EINTR) {
      return base::ErrnoError(errno, "receive");
    }
  }
  return absl::OkStatus();
}

absl::Status PatientReader::Discard(uint64_t bytes) const {
  char buffer[kBufferBytes];
  while (bytes > 0) {
    const size_t size = std::min<uint64_t>(bytes, sizeof buffer);
    const absl::Status read = Read(buffer, size);
    PREDUMP_RETURN_IF_ERROR(absl::IsOutOfRange(read) ? Left() : read);
    bytes -= size;
  }
  return absl::OkStatus();
}

}  // namespace predump::pageserver
