// The mappings of a process as vma_entry messages, and what it runs and stands in.
#ifndef PREDUMP_CHECKPOINT_MEMORY_CAPTURE_H_
#define PREDUMP_CHECKPOINT_MEMORY_CAPTURE_H_

#include "absl/status/status.h"
#include "proto/state.pb.h"
#include "src/checkpoint/blocker_list.h"
#include "src/checkpoint/file_registry.h"
#include "src/kernel/process.h"
#include "src/pagemap/vma.h"

namespace predump::checkpoint {

// Flags of mappings that were read earlier, for lists that come without.
class FlagMemory {
 public:
  // Notes the flags of `vmas`, forgetting all before.
  void Remember(const pagemap::VmaList& vmas);
  // The flags of `vma`: its own, or those noted for a mapping with the same bounds and file.
  kernel::VmaFlags Of(const pagemap::Vma& vma) const;

 private:
  pagemap::VmaList vmas_;
};

// `surveying`: before tracking was armed, when any userfaultfd is the application's.
absl::Status FillMappings(const kernel::ProcessHandle& process, const pagemap::VmaList& vmas,
                          const FlagMemory& flags, bool surveying, FileRegistry& files,
                          proto::ProcessState& state, BlockerList& blockers);

// exe, cwd, root, umask.
absl::Status FillPaths(const kernel::ProcessHandle& process, uint32_t umask, FileRegistry& files,
                       proto::ProcessState& state, BlockerList& blockers);

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_MEMORY_CAPTURE_H_
