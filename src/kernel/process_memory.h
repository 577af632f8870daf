// Reading and writing the memory of another process.
//
// Thread rule: free functions; a ProcessMemory may be shared by threads.
#ifndef PREDUMP_KERNEL_PROCESS_MEMORY_H_
#define PREDUMP_KERNEL_PROCESS_MEMORY_H_

#include <cstddef>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/base/unique_fd.h"
#include "src/base/units.h"
#include "src/kernel/process.h"

namespace predump::kernel {

// Reads `ranges` one after the other into `out` with as few process_vm_readv(2) calls as possible.
// Shape: the ranges' sizes sum up to at most out.size().
// Returns the bytes read. Fewer than asked for means that the byte after them is not readable
// (EFAULT: unmapped or PROT_NONE), 0 that the first is not; an unreadable byte is no error.
// Errors: TargetExited; InvalidArgument `out` is too small; else from process_vm_readv(2).
absl::StatusOr<base::ByteCount> ReadProcessMemory(const ProcessHandle& process,
                                                  std::span<const base::AddressRange> ranges,
                                                  std::span<std::byte> out);
// The same for one address; the whole of `out` or an OutOfRange error naming the address.
absl::Status ReadProcessMemoryExactly(const ProcessHandle& process, base::RemoteAddress address,
                                      std::span<std::byte> out);

// /proc/PID/mem: reads PROT_NONE memory too, writes read-only memory too (copy on write).
class ProcessMemory {
 public:
  // `flags`: O_RDONLY or O_RDWR. TargetExited; else from open(2).
  static absl::StatusOr<ProcessMemory> Open(const ProcessHandle& process, int flags);
  // Through one thread's directory, which the kernel's proc_mem.force_override=ptrace asks for.
  static absl::StatusOr<ProcessMemory> OpenThread(pid_t tid, int flags);

  // Bytes read, short where the next byte is unmapped. TargetExited where the memory is gone.
  absl::StatusOr<base::ByteCount> Read(base::RemoteAddress address, std::span<std::byte> out) const;
  // The whole span or an error.
  absl::Status ReadExactly(base::RemoteAddress address, std::span<std::byte> out) const;
  absl::Status Write(base::RemoteAddress address, std::span<const std::byte> bytes) const;

  int fd() const { return fd_.get(); }

 private:
  explicit ProcessMemory(base::UniqueFd fd) : fd_(std::move(fd)) {}
  base::UniqueFd fd_;
};

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_PROCESS_MEMORY_H_
