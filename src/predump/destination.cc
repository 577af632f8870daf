#include "src/predump/destination.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/predump/criu_destination.h"
#include "src/predump/native_destination.h"

namespace predump {

absl::StatusOr<std::unique_ptr<Destination>> Destination::Connect(const MigrationOptions& options,
                                                                  Cancellation& cancellation,
                                                                  MigrationObserver& observer) {
  if (options.to.kind() == transport::Endpoint::Kind::kCriu) {
    return CriuDestination::Create(options, cancellation, observer);
  }
  return NativeDestination::Connect(options, cancellation);
}

std::string Line(const proto::Blocker& blocker) {
  std::string line = absl::StrCat(blocker.what(), ": ", blocker.reason());
  if (blocker.has_advice()) absl::StrAppend(&line, " (", blocker.advice(), ")");
  return line;
}

}  // namespace predump
