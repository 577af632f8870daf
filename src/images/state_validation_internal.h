// The parts of ValidateState; each assumes what the ones before it have checked.
#ifndef PREDUMP_IMAGES_STATE_VALIDATION_INTERNAL_H_
#define PREDUMP_IMAGES_STATE_VALIDATION_INTERNAL_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "src/images/image_set.h"
#include "src/images/state_validation.h"

namespace predump::images::internal {

template <typename... Parts>
absl::Status Bad(const Parts&... parts) {
  return absl::DataLossError(absl::StrCat("state of the process: ", parts...));
}

// An absolute path the kernel could have given: non-empty, at most 4095 bytes, no NUL.
bool IsAbsolutePath(absl::string_view path);

absl::Status ValidateTasks(const proto::ProcessState& state, StateKind kind,
                           const StateLimits& limits);
absl::Status ValidateMemory(const proto::ProcessState& state, const FileIndex& files,
                            const StateLimits& limits);
absl::Status ValidateFiles(const proto::ProcessState& state, const FileIndex& files,
                           const StateLimits& limits);

}  // namespace predump::images::internal

#endif  // PREDUMP_IMAGES_STATE_VALIDATION_INTERNAL_H_
