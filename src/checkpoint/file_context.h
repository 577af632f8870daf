// What the readers of the various kinds of files share.
#ifndef PREDUMP_CHECKPOINT_FILE_CONTEXT_H_
#define PREDUMP_CHECKPOINT_FILE_CONTEXT_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "proto/state.pb.h"
#include "src/checkpoint/blocker_list.h"
#include "src/checkpoint/capture.h"
#include "src/checkpoint/capture_instant.h"
#include "src/checkpoint/descriptor.h"
#include "src/checkpoint/file_registry.h"
#include "src/checkpoint/socket_diag.h"
#include "src/checkpoint/socket_options.h"
#include "src/kernel/process.h"

namespace predump::checkpoint {

struct FileContext {
  const kernel::ProcessHandle& process;
  const CaptureOptions& options;
  const SocketDiag* diag;  // null: `diag_status` says why
  absl::Status diag_status;
  const CaptureInstant& instant;
  bool frozen;                 // contents of pipes and queues are read only then
  dev_t controlling_terminal;  // 0: none
  FileRegistry& files;
  proto::ProcessState& state;
  BlockerList& blockers;

  FreshOptions& fresh_options;
  std::vector<Descriptor> descriptors;
  // File id by index of the first descriptor of each description; 0: refused.
  std::vector<uint32_t> file_ids;
};

// A file_entry of `type` whose body has the flags and no owner. `body` is the mutable_... accessor.
template <typename Body>
Body& StartEntry(criu::file_entry& entry, criu::fd_types type, Body* body,
                 const Descriptor& descriptor) {
  entry.set_type(type);
  body->set_flags(descriptor.flags());
  *body->mutable_fown() = images::NoFileOwner();
  return *body;
}

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_FILE_CONTEXT_H_
