#include "src/checkpoint/file_registry.h"

namespace predump::checkpoint {

uint32_t FileRegistry::ByPath(const std::string& path, const FileIdentity& identity) {
  const auto [known, added] = by_path_.try_emplace(path, 0);
  if (added) known->second = builder_.AddFile(RegularFileEntry(path, 0, 0, identity));
  return known->second;
}

uint32_t FileRegistry::FindByPath(const std::string& path) const {
  const auto known = by_path_.find(path);
  return known == by_path_.end() ? 0 : known->second;
}

}  // namespace predump::checkpoint
