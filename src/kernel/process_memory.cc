#include "src/kernel/process_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "src/base/errors.h"

namespace predump::kernel {
namespace {

// One call's worth of remote vectors; IOV_MAX is 1024.
constexpr size_t kVectorsPerCall = 512;

}  // namespace

absl::StatusOr<base::ByteCount> ReadProcessMemory(const ProcessHandle& process,
                                                  std::span<const base::AddressRange> ranges,
                                                  std::span<std::byte> out) {
  size_t done = 0;
  while (!ranges.empty()) {
    std::array<struct iovec, kVectorsPerCall> remote;
    size_t vectors = 0;
    size_t wanted = 0;
    while (vectors < std::min(ranges.size(), kVectorsPerCall)) {
      const base::AddressRange range = ranges[vectors];
      if (range.size().value() > out.size() - done - wanted) {
        return absl::InvalidArgumentError("the buffer is smaller than the ranges to read");
      }
      remote[vectors++] = {reinterpret_cast<void*>(range.start().value()), range.size().value()};
      wanted += range.size().value();
    }
    ranges = ranges.subspan(vectors);
    size_t got = 0;
    size_t first = 0;
    // A call moves at most 2 GiB: go on where it ended until a byte cannot be read.
    while (got < wanted) {
      while (remote[first].iov_len == 0) ++first;
      struct iovec local = {out.data() + done + got, wanted - got};
      const ssize_t n =
          ::process_vm_readv(process.pid(), &local, 1, &remote[first], vectors - first, 0);
      if (n < 0 && errno == EFAULT) return base::ByteCount(done + got);
      if (n < 0) return process.ErrorFor(errno, "process_vm_readv");
      if (n == 0) {
        // Vectors of length 0 only, or a process without memory.
        return process.ErrorFor(ESRCH, "process_vm_readv made no progress");
      }
      got += static_cast<size_t>(n);
      for (size_t left = static_cast<size_t>(n); left > 0;) {
        const size_t step = std::min(left, remote[first].iov_len);
        remote[first].iov_base = static_cast<std::byte*>(remote[first].iov_base) + step;
        remote[first].iov_len -= step;
        left -= step;
        if (remote[first].iov_len == 0) ++first;
      }
    }
    done += got;
  }
  return base::ByteCount(done);
}

absl::Status ReadProcessMemoryExactly(const ProcessHandle& process, base::RemoteAddress address,
                                      std::span<std::byte> out) {
  const base::AddressRange range =
      base::AddressRange::FromOrdered(address.value(), address.value() + out.size());
  PREDUMP_ASSIGN_OR_RETURN(const base::ByteCount got,
                           ReadProcessMemory(process, std::span(&range, 1), out));
  if (got.value() == out.size()) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrFormat("process %d: memory at %#x is not readable",
                                               process.pid(), address.value() + got.value()));
}

absl::StatusOr<ProcessMemory> ProcessMemory::Open(const ProcessHandle& process, int flags) {
  PREDUMP_ASSIGN_OR_RETURN(base::UniqueFd fd, process.OpenProc("mem", flags));
  return ProcessMemory(std::move(fd));
}

absl::StatusOr<ProcessMemory> ProcessMemory::OpenThread(pid_t tid, int flags) {
  const std::string path = absl::StrCat("/proc/", tid, "/mem");
  base::UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC));
  if (!fd.valid()) {
    if (errno == ENOENT || errno == ESRCH) {
      return base::TargetExited(absl::StrCat("task ", tid, " has exited"));
    }
    return base::ErrnoError(errno, "open ", path);
  }
  return ProcessMemory(std::move(fd));
}

absl::StatusOr<base::ByteCount> ProcessMemory::Read(base::RemoteAddress address,
                                                    std::span<std::byte> out) const {
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t n = ::pread(fd_.get(), out.data() + done, out.size() - done,
                              static_cast<off_t>(address.value() + done));
    if (n > 0) {
      done += static_cast<size_t>(n);
      continue;
    }
    if (n < 0 && errno == EINTR) continue;
    // EIO: the next byte is not mapped. 0: the address space itself is gone.
    if (n < 0 && errno == EIO) return base::ByteCount(done);
    if (n == 0) return base::TargetExited("the address space is gone");
    return base::ErrnoError(errno, absl::StrFormat("read memory at %#x", address.value() + done));
  }
  return base::ByteCount(done);
}

absl::Status ProcessMemory::ReadExactly(base::RemoteAddress address,
                                        std::span<std::byte> out) const {
  PREDUMP_ASSIGN_OR_RETURN(const base::ByteCount got, Read(address, out));
  if (got.value() == out.size()) return absl::OkStatus();
  return absl::OutOfRangeError(
      absl::StrFormat("memory at %#x is not mapped", address.value() + got.value()));
}

absl::Status ProcessMemory::Write(base::RemoteAddress address,
                                  std::span<const std::byte> bytes) const {
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::pwrite(fd_.get(), bytes.data() + done, bytes.size() - done,
                               static_cast<off_t>(address.value() + done));
    if (n > 0) {
      done += static_cast<size_t>(n);
      continue;
    }
    if (n < 0 && errno == EINTR) continue;
    if (n == 0) return base::TargetExited("the address space is gone");
    return base::ErrnoError(errno, absl::StrFormat("write memory at %#x", address.value() + done));
  }
  return absl::OkStatus();
}

}  // namespace predump::kernel
