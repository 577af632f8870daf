#include "src/core/stream_output.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"

namespace predump::core {
namespace {

constexpr base::ByteCount kPipeCapacity{1 << 20};
constexpr std::array<std::byte, 64 << 10> kZeros = {};

absl::Status ReadExactly(int fd, std::span<std::byte> out) {
  while (!out.empty()) {
    const ssize_t got = ::read(fd, out.data(), out.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return base::ErrnoError(errno, "read of pages from a pipe");
    if (got == 0) return absl::DataLossError("a pipe ended before the pages it was to hold");
    out = out.subspan(static_cast<size_t>(got));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Output>> StreamOutput::Create(base::UniqueFd fd, std::string name,
                                                             int cancel_fd) {
  struct stat info;
  if (::fstat(fd.get(), &info) != 0) return base::ErrnoError(errno, "fstat ", name);
  const Kind kind = S_ISFIFO(info.st_mode)   ? Kind::kPipe
                    : S_ISSOCK(info.st_mode) ? Kind::kSocket
                                             : Kind::kOther;
  PREDUMP_ASSIGN_OR_RETURN(kernel::PipePair pipe, kernel::PipePair::Create(kPipeCapacity));
  PREDUMP_ASSIGN_OR_RETURN(base::MappedRegion buffer,
                           base::MappedRegion::Anonymous(pipe.capacity().value()));
  return std::unique_ptr<Output>(new StreamOutput(std::move(fd), std::move(name), cancel_fd, kind,
                                                  std::move(pipe), std::move(buffer)));
}

ssize_t StreamOutput::SendSome(std::span<const std::byte> bytes) const {
  switch (kind_) {
    case Kind::kSocket:
      return ::send(fd_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    case Kind::kPipe:
      // A pipe that polls writable takes this much without a wait, whatever its flags (pipe(7)).
      return ::write(fd_.get(), bytes.data(), std::min<size_t>(bytes.size(), PIPE_BUF));
    case Kind::kOther:
      break;
  }
  return ::write(fd_.get(), bytes.data(), bytes.size());
}

absl::Status StreamOutput::Send(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    struct pollfd fds[] = {{fd_.get(), POLLOUT, 0}, {cancel_fd_, POLLIN, 0}};
    if (::poll(fds, std::size(fds), -1) < 0) {
      if (errno == EINTR) continue;
      return base::ErrnoError(errno, "wait for the reader of ", name_);
    }
    if (fds[1].revents != 0) return absl::CancelledError("cancelled");
    const ssize_t sent = SendSome(bytes);
    if (sent < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (sent < 0 && (errno == EPIPE || errno == ECONNRESET)) {
      return base::ErrnoError(errno, "write to ", name_, ": its reader has gone");
    }
    if (sent < 0) return base::ErrnoError(errno, "write to ", name_);
    bytes = bytes.subspan(static_cast<size_t>(sent));
    position_ += static_cast<uint64_t>(sent);
  }
  return absl::OkStatus();
}

absl::Status StreamOutput::ZerosUpTo(uint64_t offset) {
  while (position_ < offset) {
    const uint64_t step = std::min<uint64_t>(offset - position_, kZeros.size());
    PREDUMP_RETURN_IF_ERROR(Send(std::span(kZeros).first(step)));
  }
  return absl::OkStatus();
}

absl::Status StreamOutput::Write(uint64_t offset, std::span<const std::byte> bytes) {
  PREDUMP_RETURN_IF_ERROR(ZerosUpTo(offset));
  return Send(bytes);
}

absl::Status StreamOutput::Take(pagemap::PageSource& source,
                                std::span<const Placement> placements) {
  PREDUMP_RETURN_IF_ERROR(source.PushTo(pipe_.write_end()));
  uint64_t total = 0;
  for (const Placement& placement : placements) total += placement.bytes.value();
  const std::span<std::byte> pages = buffer_.bytes().first(total);
  PREDUMP_RETURN_IF_ERROR(ReadExactly(pipe_.read_end(), pages));
  std::span<const std::byte> left = pages;
  for (const Placement& placement : placements) {
    PREDUMP_RETURN_IF_ERROR(Write(placement.offset, left.first(placement.bytes.value())));
    left = left.subspan(placement.bytes.value());
  }
  return absl::OkStatus();
}

absl::Status StreamOutput::Finish(uint64_t size) {
  PREDUMP_RETURN_IF_ERROR(ZerosUpTo(size));
  if (const absl::Status closed = fd_.Close(); !closed.ok()) {
    return base::Annotate(closed, absl::StrCat("close ", name_));
  }
  return absl::OkStatus();
}

}  // namespace predump::core
