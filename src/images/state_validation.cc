#include "src/images/state_validation.h"

#include "src/base/errors.h"
#include "src/images/state_validation_internal.h"

namespace predump::images {
namespace internal {

bool IsAbsolutePath(absl::string_view path) {
  return !path.empty() && path[0] == '/' && path.size() < 4096 &&
         path.find('\0') == absl::string_view::npos;
}

}  // namespace internal

absl::Status ValidateState(const proto::ProcessState& state, StateKind kind,
                           const StateLimits& limits) {
  if (!state.IsInitialized()) return internal::Bad("a required field is missing");
  PREDUMP_RETURN_IF_ERROR(internal::ValidateTasks(state, kind, limits));
  const FileIndex files(state);
  PREDUMP_RETURN_IF_ERROR(internal::ValidateFiles(state, files, limits));
  return internal::ValidateMemory(state, files, limits);
}

}  // namespace predump::images
