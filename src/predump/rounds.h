// The loop of rounds while the process runs: scan, send, acknowledge, decide.
#ifndef PREDUMP_PREDUMP_ROUNDS_H_
#define PREDUMP_PREDUMP_ROUNDS_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "src/predump/engine.h"
#include "src/predump/policy.h"

namespace predump {

struct RoundsResult {
  Decision decision;    // kFreeze or kCancel
  uint64_t rounds = 0;  // done; the final one gets this number
};

// Runs rounds until the policy has had enough. Errors: TargetExited; Cancelled; FailedPrecondition
// (the process became another program); what link, tracker or source say.
absl::StatusOr<RoundsResult> RunRounds(Engine& engine);

}  // namespace predump

#endif  // PREDUMP_PREDUMP_ROUNDS_H_
