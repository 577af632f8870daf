// `--rounds -`: somebody else, a script, says after each round what comes next.
//
// Thread rule: the migrating thread.
#ifndef PREDUMP_PREDUMP_ROUND_REQUESTS_H_
#define PREDUMP_PREDUMP_ROUND_REQUESTS_H_

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "src/kernel/process.h"
#include "src/predump/cancellation.h"
#include "src/predump/policy.h"

namespace predump {

// Reads lines from a descriptor that it borrows: `round`, or an empty one, for another round;
// `freeze` for the end of rounds. The end of the input ends them where rounds are all there is; a
// move whose script died must not go on, so that there it cancels.
class RoundRequests {
 public:
  RoundRequests(int fd, bool rounds_only) : fd_(fd), rounds_only_(rounds_only) {}

  // Waits for a line. After `freeze` there is nothing more to wait for. Errors: Cancelled;
  // TargetExited as soon as `process` has; InvalidArgument, with the line; what read(2) says.
  absl::StatusOr<NextStep> Next(Cancellation& cancellation, const kernel::ProcessHandle& process);

  bool freeze_asked() const { return freeze_asked_; }

 private:
  absl::Status Wait(Cancellation& cancellation, const kernel::ProcessHandle& process);
  std::optional<std::string> TakeLine();

  const int fd_;
  const bool rounds_only_;
  std::string read_;
  bool ended_ = false;
  bool freeze_asked_ = false;
};

}  // namespace predump

#endif  // PREDUMP_PREDUMP_ROUND_REQUESTS_H_
