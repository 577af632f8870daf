// The loop of rounds while the process runs: scan, send, acknowledge, decide.
#ifndef PREDUMP_PREDUMP_ROUNDS_H_
#define PREDUMP_PREDUMP_ROUNDS_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/predump/engine.h"
#include "src/predump/policy.h"

namespace predump {

struct RoundsResult {
  Decision decision;    // kFreeze or kCancel
  uint64_t rounds = 0;  // done; the final one gets this number
};

class RoundLoop {
 public:
  // `engine` must outlive it.
  explicit RoundLoop(Engine& engine);
  ~RoundLoop();

  // Runs rounds, at least one, until the policy has had enough. May be called again after a freeze
  // that came at a bad moment: numbers and history go on. Errors: TargetExited; Cancelled;
  // FailedPrecondition (the process became another program); what link, tracker or source say.
  absl::StatusOr<RoundsResult> Run();

  // Whether --max-rounds or --timeout leave room for one more round.
  bool MayGoOn() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace predump

#endif  // PREDUMP_PREDUMP_ROUNDS_H_
