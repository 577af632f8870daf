// Pipes as page carriers: pipe2, vmsplice of our own memory and of another process's, splice.
//
// Thread rule: an object belongs to one thread at a time.
#ifndef PREDUMP_KERNEL_SPLICE_H_
#define PREDUMP_KERNEL_SPLICE_H_

#include <sys/uio.h>

#include <cstddef>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/base/unique_fd.h"
#include "src/base/units.h"
#include "src/kernel/process.h"

namespace predump::kernel {

// The number that kernel-patch/ gives process_vmsplice(2). Linux assigned none, so it may be
// another call's: probe for Capability::kProcessVmsplice before the first use.
inline constexpr long kProcessVmspliceNumber = 600;

// Sets the capacity of the pipe `fd` to `wanted`, or less where limits say so (EPERM past
// pipe-max-size, EBUSY below its contents), and returns what it has. Never an error for being
// smaller: that is only slower.
absl::StatusOr<base::ByteCount> ResizePipe(int fd, base::ByteCount wanted);

class PipePair {
 public:
  // pipe2(O_CLOEXEC), resized as ResizePipe does.
  static absl::StatusOr<PipePair> Create(base::ByteCount wanted_capacity);

  int read_end() const { return read_.get(); }
  int write_end() const { return write_.get(); }
  base::ByteCount capacity() const { return capacity_; }
  void CloseWriteEnd() { write_ = base::UniqueFd(); }
  base::UniqueFd TakeReadEnd() { return std::move(read_); }
  base::UniqueFd TakeWriteEnd() { return std::move(write_); }

 private:
  base::UniqueFd read_;
  base::UniqueFd write_;
  base::ByteCount capacity_;
};

// Moves exactly `bytes` from the pipe `from_pipe` to `to` (socket, pipe or file at its position),
// waiting where `to` is full. `more`: SPLICE_F_MORE, further data follows at once.
// Errors: DataLoss the pipe ended early (splice gave 0: that is no progress and never retried);
// else from splice(2): Unavailable for a closed peer, DeadlineExceeded past the socket's
// SO_SNDTIMEO.
absl::Status SpliceAll(int from_pipe, int to, base::ByteCount bytes, bool more);

// vmsplice(2) of our own memory without gift or wait. Returns bytes queued, 0 where the pipe is
// full. The memory must not be written until the peer has acknowledged it (DESIGN 6).
absl::StatusOr<base::ByteCount> Vmsplice(int pipe, std::span<const iovec> memory);

// process_vmsplice(2): queues pages of `process` into `pipe`, without copying and without waiting.
// Shape: page-aligned ranges, in order. Units: the result is bytes from the start of `ranges`;
// fewer than asked for where the pipe is full or the next page can't be had, 0 where that is so at
// once. Errors: TargetExited, and then what the pipe holds is not to be used; else from the call.
// Source: kernel-patch/process_vmsplice.2.
absl::StatusOr<base::ByteCount> ProcessVmsplice(const ProcessHandle& process, int pipe,
                                                std::span<const base::AddressRange> ranges);

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_SPLICE_H_
