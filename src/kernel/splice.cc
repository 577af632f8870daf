#include "src/kernel/splice.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <limits>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"

namespace predump::kernel {

absl::StatusOr<base::ByteCount> ResizePipe(int fd, base::ByteCount wanted) {
  // Halving finds what an unprivileged user's limit (pipe-max-size, pipe-user-pages-soft) leaves.
  for (uint64_t size = std::min<uint64_t>(wanted.value(), std::numeric_limits<int>::max());
       size >= base::PageSize(); size /= 2) {
    if (::fcntl(fd, F_SETPIPE_SZ, static_cast<int>(size)) >= 0) break;
    if (errno != EPERM && errno != EBUSY && errno != ENOMEM) {
      return base::ErrnoError(errno, "F_SETPIPE_SZ ", size);
    }
  }
  const int capacity = ::fcntl(fd, F_GETPIPE_SZ);
  if (capacity < 0) return base::ErrnoError(errno, "F_GETPIPE_SZ");
  return base::ByteCount(static_cast<uint64_t>(capacity));
}

absl::StatusOr<PipePair> PipePair::Create(base::ByteCount wanted_capacity) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return base::ErrnoError(errno, "pipe2");
  PipePair pair;
  pair.read_ = base::UniqueFd(ends[0]);
  pair.write_ = base::UniqueFd(ends[1]);
  PREDUMP_ASSIGN_OR_RETURN(pair.capacity_, ResizePipe(ends[0], wanted_capacity));
  return pair;
}

absl::Status SpliceAll(int from_pipe, int to, base::ByteCount bytes, bool more) {
  uint64_t left = bytes.value();
  while (left > 0) {
    const size_t step = std::min<uint64_t>(left, 1u << 30);
    const unsigned flags = SPLICE_F_MOVE | (more || step < left ? SPLICE_F_MORE : 0);
    const ssize_t moved = ::splice(from_pipe, nullptr, to, nullptr, step, flags);
    if (moved > 0) {
      left -= static_cast<uint64_t>(moved);
      continue;
    }
    if (moved == 0) {
      return absl::DataLossError(
          absl::StrCat("the pipe ended ", left, " bytes before the end of what was to be sent"));
    }
    if (errno == EINTR) continue;
    if (errno == EAGAIN) {
      // A blocking socket says so past SO_SNDTIMEO, a non-blocking one when it is full.
      const int flags_of_to = ::fcntl(to, F_GETFL);
      if (flags_of_to >= 0 && (flags_of_to & O_NONBLOCK) == 0) {
        return absl::DeadlineExceededError("the peer took nothing within the send timeout");
      }
      struct pollfd poll_fd = {to, POLLOUT, 0};
      if (::poll(&poll_fd, 1, -1) < 0 && errno != EINTR) return base::ErrnoError(errno, "poll");
      continue;
    }
    return base::ErrnoError(errno, "splice");
  }
  return absl::OkStatus();
}

absl::StatusOr<base::ByteCount> Vmsplice(int pipe, std::span<const iovec> memory) {
  for (;;) {
    const ssize_t queued = ::vmsplice(pipe, memory.data(), memory.size(), SPLICE_F_NONBLOCK);
    if (queued >= 0) return base::ByteCount(static_cast<uint64_t>(queued));
    if (errno == EAGAIN) return base::ByteCount(0);
    if (errno != EINTR) return base::ErrnoError(errno, "vmsplice");
  }
}

absl::StatusOr<base::ByteCount> ProcessVmsplice(const ProcessHandle& process, int pipe,
                                                std::span<const base::AddressRange> ranges) {
  base::ByteCount queued;
  while (!ranges.empty()) {
    std::array<struct iovec, IOV_MAX> vectors;
    const auto part = ranges.first(std::min(ranges.size(), vectors.size()));
    base::ByteCount wanted;
    for (size_t i = 0; i < part.size(); ++i) {
      vectors[i] = {reinterpret_cast<void*>(part[i].start().value()), part[i].size().value()};
      wanted += part[i].size();
    }
    const long result = ::syscall(kProcessVmspliceNumber, process.pid(), pipe, vectors.data(),
                                  part.size(), SPLICE_F_NONBLOCK);
    if (result < 0 && errno == EINTR) continue;
    if (result < 0 && (errno == EAGAIN || errno == EFAULT)) break;
    if (result < 0) return process.ErrorFor(errno, "process_vmsplice");
    queued += base::ByteCount(static_cast<uint64_t>(result));
    if (static_cast<uint64_t>(result) < wanted.value()) break;
    ranges = ranges.subspan(part.size());
  }
  // The call takes a number: had the process exited, it might by now be another one's.
  PREDUMP_ASSIGN_OR_RETURN(const bool exited, process.HasExited());
  if (exited) return process.ErrorFor(ESRCH, "process_vmsplice");
  return queued;
}

}  // namespace predump::kernel
