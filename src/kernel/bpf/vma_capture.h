// The mappings of a process straight from the kernel's tree: about a tenth of the cost of smaps.
//
// A BPF iterator (iter/task_vma, Linux 6.1). The walk takes the target's mmap lock for reading and
// yields it to writers, so a running target may change between two records.
//
// Thread rule: an object belongs to one thread at a time.
#ifndef PREDUMP_KERNEL_BPF_VMA_CAPTURE_H_
#define PREDUMP_KERNEL_BPF_VMA_CAPTURE_H_

#include <sys/types.h>

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "src/kernel/bpf/records.h"
#include "src/kernel/procfs_maps.h"

namespace predump::kernel {

// The raw VM_* bits of a record as the flags smaps shows, protection key included. Bits that smaps
// does not show are left out.
// Source: include/linux/mm.h and fs/proc/task_mmu.c of 6.12 and 6.18, x86-64.
VmaFlags FlagsOf(const VmaRecord& vma);

class VmaCapture {
 public:
  // As TaskCapture::Create.
  static absl::StatusOr<VmaCapture> Create(pid_t tgid);

  VmaCapture(VmaCapture&&) noexcept;
  VmaCapture& operator=(VmaCapture&&) noexcept;
  ~VmaCapture();

  // All mappings by ascending address. The vsyscall page, which is no mapping, is not among them.
  // Inode and device are the mapped file's own: on stacked file systems (overlayfs) those of the
  // lower file, where /proc/PID/maps shows the upper ones.
  // Errors: TargetExited; DataLoss for a stream that does not parse.
  absl::StatusOr<std::vector<VmaRecord>> Read();

 private:
  struct Program;
  explicit VmaCapture(std::unique_ptr<Program> program);
  std::unique_ptr<Program> program_;
};

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_BPF_VMA_CAPTURE_H_
