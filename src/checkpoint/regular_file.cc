#include "src/checkpoint/regular_file.h"

#include <fcntl.h>
#include <linux/magic.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/base/unique_fd.h"
#include "src/checkpoint/build_id.h"
#include "src/images/image_set.h"

namespace predump::checkpoint {
namespace {

bool SameTime(const struct timespec& a, const struct timespec& b) {
  return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

bool Unchanged(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino && a.st_size == b.st_size &&
         SameTime(a.st_mtim, b.st_mtim) && SameTime(a.st_ctim, b.st_ctim);
}

}  // namespace

absl::StatusOr<FileIdentity> IdentityCache::Look(const std::string& path, bool with_build_id) {
  FileIdentity identity;
  if (::stat(path.c_str(), &identity.stat) != 0) return base::ErrnoError(errno, "stat ", path);
  if (!with_build_id || !S_ISREG(identity.stat.st_mode)) return identity;
  const auto known = known_.find(path);
  if (known != known_.end() && Unchanged(known->second.stat, identity.stat)) return known->second;
  const base::UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.valid()) return base::ErrnoError(errno, "open ", path);
  PREDUMP_ASSIGN_OR_RETURN(identity.build_id, ReadBuildId(file.get()));
  known_[path] = identity;
  return identity;
}

void IdentityCache::NoteMapped(const std::string& path, uint64_t device, uint64_t inode,
                               const FileIdentity& identity) {
  mapped_[path] = {.device = device, .inode = inode, .identity = identity};
}

const FileIdentity* IdentityCache::FindMapped(const std::string& path, uint64_t device,
                                              uint64_t inode) const {
  const auto noted = mapped_.find(path);
  if (noted == mapped_.end() || noted->second.device != device || noted->second.inode != inode) {
    return nullptr;
  }
  return &noted->second.identity;
}

criu::file_entry RegularFileEntry(const std::string& path, uint32_t flags, uint64_t position,
                                  const FileIdentity& identity) {
  criu::file_entry file;
  file.set_type(criu::REG);
  criu::reg_file_entry& body = *file.mutable_reg();
  body.set_flags(flags);
  body.set_pos(position);
  *body.mutable_fown() = images::NoFileOwner();
  body.set_name(path);
  body.set_mode(identity.stat.st_mode);
  // A log file may have been written by others as well; its size says nothing.
  const bool append_only = (flags & O_ACCMODE) == O_WRONLY && (flags & O_APPEND) != 0;
  if (S_ISREG(identity.stat.st_mode) && !append_only) {
    body.set_size(static_cast<uint64_t>(identity.stat.st_size));
  }
  for (size_t at = 0; at < identity.build_id.size(); at += sizeof(uint32_t)) {
    uint32_t word = 0;
    std::memcpy(&word, identity.build_id.data() + at,
                std::min(sizeof word, identity.build_id.size() - at));
    body.add_build_id(word);
  }
  return file;
}

std::optional<std::string> WhyFileSystemStays(uint64_t type) {
  switch (type) {
    case PROC_SUPER_MAGIC:
      return "a file of /proc shows this host's processes";
    case SYSFS_MAGIC:
    case CGROUP_SUPER_MAGIC:
    case CGROUP2_SUPER_MAGIC:
    case DEBUGFS_MAGIC:
    case TRACEFS_MAGIC:
    case SECURITYFS_MAGIC:
    case BPF_FS_MAGIC:
    case EFIVARFS_MAGIC:
    case PSTOREFS_MAGIC:
    case BINFMTFS_MAGIC:
    case RDTGROUP_SUPER_MAGIC:
      return "a file of the kernel shows this host's state";
    default:
      return std::nullopt;
  }
}

std::optional<std::string> WhyNotReachable(absl::string_view path, const struct stat& actual,
                                           const absl::StatusOr<FileIdentity>& at_path) {
  if (absl::EndsWith(path, " (deleted)") || actual.st_nlink == 0) {
    return "the file was deleted";
  }
  if (path.empty() || path[0] != '/') return absl::StrCat("no path leads to it (", path, ")");
  if (!at_path.ok()) return absl::StrCat("its path cannot be used: ", at_path.status().message());
  if (at_path->stat.st_dev != actual.st_dev || at_path->stat.st_ino != actual.st_ino) {
    return absl::StrCat("another file is at ", path, " now");
  }
  return std::nullopt;
}

}  // namespace predump::checkpoint
