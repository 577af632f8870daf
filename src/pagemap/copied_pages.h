// Pages taken by copying: what the readv source lives on, and what the helper source falls back to.
//
// Thread rule: an object belongs to one thread at a time.
#ifndef PREDUMP_PAGEMAP_COPIED_PAGES_H_
#define PREDUMP_PAGEMAP_COPIED_PAGES_H_

#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/base/units.h"
#include "src/kernel/process.h"
#include "src/kernel/process_memory.h"
#include "src/pagemap/extent.h"

namespace predump::pagemap {

// The first `limit` bytes of `wanted`, extent by extent.
std::vector<Extent> FirstBytes(std::span<const Extent> wanted, base::ByteCount limit);

// Appends to a list of extents in the order of their bytes; neighbours that touch become one.
void AppendExtent(std::vector<Extent>& extents, Extent extent);

// Reads what neither process_vm_readv(2) nor vmsplice(2) reads: memory without PROT_READ, through
// /proc/PID/mem.
class UnreadablePages {
 public:
  // `process` outlives the object. Errors: TargetExited; else from open(2).
  static absl::StatusOr<UnreadablePages> Open(const kernel::ProcessHandle& process);

  // Either is empty, never both; each is a run of whole pages from the start of the extent.
  struct Result {
    Extent read;
    Extent vanished;  // not mapped, or mapped without anything behind it (past the end of a file)
  };
  // Shape: `extent` is not empty, `out` holds at least one page; reads at most out.size().
  // Errors: TargetExited; else from errno.
  absl::StatusOr<Result> Read(Extent extent, std::span<std::byte> out) const;

 private:
  UnreadablePages(const kernel::ProcessHandle& process, kernel::ProcessMemory memory)
      : process_(&process), memory_(std::move(memory)) {}

  // The run of pages from extent.start() that nothing is behind.
  absl::StatusOr<Extent> VanishedRun(Extent extent) const;

  const kernel::ProcessHandle* process_;
  kernel::ProcessMemory memory_;
};

// Writes all of `bytes` to `fd` (socket, pipe or file), waiting where it is full, by calls that
// copy: the buffer may be refilled when this returns. Errors: from send(2), write(2); Unavailable
// for a closed peer.
absl::Status WriteCopying(int fd, std::span<const std::byte> bytes);

}  // namespace predump::pagemap

#endif  // PREDUMP_PAGEMAP_COPIED_PAGES_H_
