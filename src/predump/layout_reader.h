// Reads the layout of the process with all its flags, fast enough for a frozen one.
#ifndef PREDUMP_PREDUMP_LAYOUT_READER_H_
#define PREDUMP_PREDUMP_LAYOUT_READER_H_

#include <optional>

#include "absl/status/statusor.h"
#include "src/kernel/bpf/vma_capture.h"
#include "src/kernel/process.h"
#include "src/pagemap/vma.h"

namespace predump {

class LayoutReader {
 public:
  static LayoutReader Create(const kernel::ProcessHandle& process, bool use_bpf);

  // Flags come from the kernel's own mappings through BPF, a tenth of the cost of smaps, or from
  // smaps where BPF is not to be had. Looks for guard regions too, which means a walk through all
  // page tables: milliseconds a GiB. Errors: TargetExited.
  absl::StatusOr<pagemap::VmaList> Read();
  // The same of a frozen process, without that walk: guarded is what the last Read() found so.
  absl::StatusOr<pagemap::VmaList> ReadFrozen() const;

 private:
  LayoutReader(const kernel::ProcessHandle& process, std::optional<kernel::VmaCapture> capture)
      : process_(&process), capture_(std::move(capture)) {}

  absl::StatusOr<pagemap::VmaList> ReadFlags() const;

  const kernel::ProcessHandle* process_;
  mutable std::optional<kernel::VmaCapture> capture_;
  std::vector<base::AddressRange> guarded_;
};

}  // namespace predump

#endif  // PREDUMP_PREDUMP_LAYOUT_READER_H_
