// /proc/PID/clear_refs: resets the soft-dirty marks of a whole process.
//
// Thread rule: const calls may run in any thread.
#ifndef PREDUMP_KERNEL_CLEAR_REFS_H_
#define PREDUMP_KERNEL_CLEAR_REFS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/base/unique_fd.h"
#include "src/kernel/process.h"

namespace predump::kernel {

class ClearRefs {
 public:
  // `process` outlives the object. TargetExited; else from open(2).
  static absl::StatusOr<ClearRefs> Open(const ProcessHandle& process);

  // Takes the marks off every page and every mapping and write-protects the pages. Pages that a
  // device may write to (pinned) keep theirs. The kernel walks all page tables under the lock of
  // the memory. Errors: TargetExited; else from write(2). Source: Linux 3.11, CONFIG_MEM_SOFT_DIRTY
  // (without which it does nothing), Documentation/admin-guide/mm/soft-dirty.rst.
  absl::Status ResetSoftDirty() const;

 private:
  ClearRefs(base::UniqueFd fd, const ProcessHandle& process)
      : fd_(std::move(fd)), process_(&process) {}

  base::UniqueFd fd_;
  const ProcessHandle* process_;  // for telling an exit from an error
};

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_CLEAR_REFS_H_
