// Files with a path: which one it is, and whether the path still leads to it.
#ifndef PREDUMP_CHECKPOINT_REGULAR_FILE_H_
#define PREDUMP_CHECKPOINT_REGULAR_FILE_H_

#include <sys/stat.h>
#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/criu_files.pb.h"

namespace predump::checkpoint {

struct FileIdentity {
  struct stat stat = {};
  std::string build_id;  // raw bytes, empty where it has none or nobody asked
};

// What paths lead to, as this process sees them. Reading a build-id means reading the file, so it
// is kept and used again as long as device, inode, size and both times are the same.
class IdentityCache {
 public:
  // Errors: NotFound nothing at `path`; else from open(2), stat(2).
  absl::StatusOr<FileIdentity> Look(const std::string& path, bool with_build_id);

  // Notes that `path` was found to lead to the file that maps calls {device, inode}. As long as
  // maps does not say "(deleted)" that holds, and a frozen process need not wait for it to be asked
  // again.
  void NoteMapped(const std::string& path, uint64_t device, uint64_t inode,
                  const FileIdentity& identity);
  // What was noted, null where nothing was.
  const FileIdentity* FindMapped(const std::string& path, uint64_t device, uint64_t inode) const;

 private:
  struct Mapped {
    uint64_t device;
    uint64_t inode;
    FileIdentity identity;
  };
  absl::flat_hash_map<std::string, Mapped> mapped_;
  absl::flat_hash_map<std::string, FileIdentity> known_;
};

// A reg_file_entry without an id: path, open flags, offset, and what to check at the target.
criu::file_entry RegularFileEntry(const std::string& path, uint32_t flags, uint64_t position,
                                  const FileIdentity& identity);

// Why files on this kind of file system do not move ("/proc: ..."), nullopt for ordinary ones.
// `type` is f_type of statfs(2).
std::optional<std::string> WhyFileSystemStays(uint64_t type);

// Why the file a descriptor or mapping of the process refers to cannot be opened again at `path`,
// nullopt when it can. `actual` is the file itself.
std::optional<std::string> WhyNotReachable(absl::string_view path, const struct stat& actual,
                                           const absl::StatusOr<FileIdentity>& at_path);

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_REGULAR_FILE_H_
