#include "src/checkpoint/file_registry.h"

#include "src/base/errors.h"

namespace predump::checkpoint {

absl::StatusOr<uint32_t> FileRegistry::ByPath(const std::string& path, bool with_build_id) {
  if (const auto known = by_path_.find(path); known != by_path_.end()) return known->second;
  PREDUMP_ASSIGN_OR_RETURN(const FileIdentity identity, identities_->Look(path, with_build_id));
  const uint32_t id = builder_.AddFile(RegularFileEntry(path, 0, 0, identity));
  by_path_.emplace(path, id);
  return id;
}

}  // namespace predump::checkpoint
