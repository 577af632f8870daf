// Small files that are either there whole or not there: journals and records.
#ifndef PREDUMP_BASE_ATOMIC_FILE_H_
#define PREDUMP_BASE_ATOMIC_FILE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace predump::base {

// What a file must outlive.
enum class Durability {
  kPowerLoss,     // synced to its disk: milliseconds, where it is on one
  kProcessDeath,  // the kernel has it: enough for what means nothing after a reboot
};

// Writes `contents` aside and renames it over `path` (mode 0600). A reader, also one after a crash,
// sees the old contents or the new, never a part. Errors: from errno, with the path.
absl::Status WriteFileAtomically(const std::string& path, absl::string_view contents,
                                 Durability durability = Durability::kPowerLoss);

// The whole file. Errors: NotFound and the like, with the path.
absl::StatusOr<std::string> ReadWholeFile(const std::string& path);

// Makes `path` and its parents; the last one with mode 0700 and owned by us. An existing directory
// that others may write to is refused (PermissionDenied).
absl::Status MakePrivateDirectory(const std::string& path);

}  // namespace predump::base

#endif  // PREDUMP_BASE_ATOMIC_FILE_H_
