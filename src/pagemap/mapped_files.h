// The files behind private mappings, to tell a private copy that differs from one that does not.
//
// Thread rule: one thread at a time.
#ifndef PREDUMP_PAGEMAP_MAPPED_FILES_H_
#define PREDUMP_PAGEMAP_MAPPED_FILES_H_

#include <cstdint>
#include <map>
#include <span>
#include <utility>

#include "absl/status/statusor.h"
#include "src/base/mapped_region.h"
#include "src/base/unique_fd.h"
#include "src/kernel/process.h"
#include "src/pagemap/extent.h"
#include "src/pagemap/vma.h"

namespace predump::pagemap {

// The file behind `vma`, opened for reading through the process, whose mount namespace may be
// another one. Errors: TargetExited; PermissionDenied without CAP_CHECKPOINT_RESTORE; else open(2).
absl::StatusOr<base::UniqueFd> OpenMappedFile(const kernel::ProcessHandle& process, const Vma& vma);

// What the file `fd` holds where `vma` maps it at `page`, as many bytes as `out` has; zeros past
// the end of the file. False where it cannot be read.
bool ReadMappedFile(int fd, const Vma& vma, base::RemoteAddress page, std::span<std::byte> out);

// Keeps the files of one process open from round to round, so that a freeze need not open any.
class MappedFiles {
 public:
  // `process` outlives the object.
  static absl::StatusOr<MappedFiles> Create(const kernel::ProcessHandle& process);

  // Opens the file behind `vma` if it is not open yet; not one that a running process has mapped
  // there since `vma` was read. A failure shows in Compare.
  void Prepare(const Vma& vma);

  struct Comparison {
    ExtentSet equal;    // hold what the file holds
    ExtentSet unknown;  // could not be compared
  };
  // Compares `pages` of `vma`. Errors: TargetExited.
  absl::StatusOr<Comparison> Compare(const Vma& vma, const ExtentSet& pages);

 private:
  using FileId = std::pair<uint64_t, uint64_t>;  // device, inode

  MappedFiles(const kernel::ProcessHandle& process, base::MappedRegion buffer)
      : process_(&process), buffer_(std::move(buffer)) {}

  absl::Status CompareRun(int fd, const Vma& vma, Extent run, Comparison& comparison);

  const kernel::ProcessHandle* process_;
  base::MappedRegion buffer_;  // one half for memory, one for the file
  std::map<FileId, base::UniqueFd> files_;
};

}  // namespace predump::pagemap

#endif  // PREDUMP_PAGEMAP_MAPPED_FILES_H_
