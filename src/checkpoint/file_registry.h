// The files of a state while it is being put together: one entry per path that is mapped, run or
// stood in, whoever asks for it.
#ifndef PREDUMP_CHECKPOINT_FILE_REGISTRY_H_
#define PREDUMP_CHECKPOINT_FILE_REGISTRY_H_

#include <cstdint>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "proto/state.pb.h"
#include "src/checkpoint/regular_file.h"
#include "src/images/image_set.h"

namespace predump::checkpoint {

class FileRegistry {
 public:
  // Both are borrowed and must outlive the registry.
  FileRegistry(proto::ProcessState& state, IdentityCache& identities)
      : builder_(state), identities_(&identities) {}

  // The id of the path's own entry (flags 0, offset 0), made when it is asked for first.
  uint32_t ByPath(const std::string& path, const FileIdentity& identity);
  // 0 where it has not been asked for yet.
  uint32_t FindByPath(const std::string& path) const;

  images::StateBuilder& builder() { return builder_; }
  IdentityCache& identities() { return *identities_; }

 private:
  images::StateBuilder builder_;
  IdentityCache* identities_;
  absl::flat_hash_map<std::string, uint32_t> by_path_;
};

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_FILE_REGISTRY_H_
