// The one place where errno becomes absl::Status, and the one spelling of "the target is gone".
//
// errno is translated where the system call is made, with operation and operands; code above only
// adds context (Annotate). Thread rule: everything here is pure.
#ifndef PREDUMP_BASE_ERRORS_H_
#define PREDUMP_BASE_ERRORS_H_

#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace predump::base {

// Status for `error_number` with the text "<operation>: <strerror>". Base is absl::ErrnoToStatus,
// except: ENOTTY and ENOSYS are Unimplemented (a missing ioctl or call), EPIPE and ECONNRESET are
// Unavailable, EIO is DataLoss, ESRCH is NotFound. The errno stays readable through ErrnoOf().
absl::Status ErrnoStatus(int error_number, absl::string_view operation);

// The same with the operation put together from its parts: ErrnoError(errno, "openat ", path).
template <typename... Parts>
absl::Status ErrnoError(int error_number, const Parts&... parts) {
  return ErrnoStatus(error_number, absl::StrCat(parts...));
}

// The errno a status was made from, if it was made by ErrnoStatus.
std::optional<int> ErrnoOf(const absl::Status& status);

// The process (or thread) being worked on has exited. NotFound with a payload of its own, so that
// a missing file and a missing process cannot be mistaken for each other.
absl::Status TargetExited(absl::string_view what);
bool IsTargetExited(const absl::Status& status);

// Puts "context: " before the message, keeping code and payloads. OK stays OK.
absl::Status Annotate(const absl::Status& status, absl::string_view context);

namespace internal {
inline absl::Status ToStatus(const absl::Status& status) { return status; }
template <typename T>
absl::Status ToStatus(const absl::StatusOr<T>& status) {
  return status.status();
}
}  // namespace internal

}  // namespace predump::base

#define PREDUMP_RETURN_IF_ERROR(expression)                           \
  do {                                                                \
    if (auto&& predump_status = (expression); !predump_status.ok()) { \
      return ::predump::base::internal::ToStatus(predump_status);     \
    }                                                                 \
  } while (false)

#define PREDUMP_CONCAT_INNER(a, b) a##b
#define PREDUMP_CONCAT(a, b) PREDUMP_CONCAT_INNER(a, b)

// PREDUMP_ASSIGN_OR_RETURN(auto value, Call()): declares `value`, or returns the error.
#define PREDUMP_ASSIGN_OR_RETURN(declaration, expression)                                 \
  PREDUMP_ASSIGN_OR_RETURN_IMPL(PREDUMP_CONCAT(predump_statusor_, __LINE__), declaration, \
                                expression)
// NOLINTBEGIN(bugprone-macro-parentheses): names that are declared cannot be in parentheses.
#define PREDUMP_ASSIGN_OR_RETURN_IMPL(holder, declaration, expression) \
  auto holder = (expression);                                          \
  if (!holder.ok()) return std::move(holder).status();                 \
  declaration = *std::move(holder)
// NOLINTEND(bugprone-macro-parentheses)

#endif  // PREDUMP_BASE_ERRORS_H_
