#include "src/base/errors.h"

#include <errno.h>
#include <string.h>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"

namespace predump::base {
namespace {

constexpr char kErrnoPayload[] = "predump/errno";
constexpr char kTargetExitedPayload[] = "predump/target-exited";

absl::StatusCode CodeFor(int error_number) {
  switch (error_number) {
    case ENOTTY:
    case ENOSYS:
      return absl::StatusCode::kUnimplemented;
    case EPIPE:
    case ECONNRESET:
    case ECONNREFUSED:
    case ENETUNREACH:
    case EHOSTUNREACH:
      return absl::StatusCode::kUnavailable;
    case EIO:
      return absl::StatusCode::kDataLoss;
    case ESRCH:
      return absl::StatusCode::kNotFound;
    default:
      return absl::ErrnoToStatusCode(error_number);
  }
}

}  // namespace

absl::Status ErrnoStatus(int error_number, absl::string_view operation) {
  char buffer[128];
  const char* text = strerror_r(error_number, buffer, sizeof buffer);
  absl::Status status(CodeFor(error_number), absl::StrCat(operation, ": ", text));
  status.SetPayload(kErrnoPayload, absl::Cord(absl::StrCat(error_number)));
  return status;
}

std::optional<int> ErrnoOf(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kErrnoPayload);
  int value = 0;
  if (!payload.has_value() || !absl::SimpleAtoi(std::string(*payload), &value)) return std::nullopt;
  return value;
}

absl::Status TargetExited(absl::string_view what) {
  absl::Status status = absl::NotFoundError(what);
  status.SetPayload(kTargetExitedPayload, absl::Cord("1"));
  return status;
}

bool IsTargetExited(const absl::Status& status) {
  return status.GetPayload(kTargetExitedPayload).has_value();
}

absl::Status Annotate(const absl::Status& status, absl::string_view context) {
  if (status.ok()) return status;
  absl::Status annotated(status.code(), absl::StrCat(context, ": ", status.message()));
  status.ForEachPayload([&annotated](absl::string_view url, const absl::Cord& payload) {
    annotated.SetPayload(url, payload);
  });
  return annotated;
}

}  // namespace predump::base
