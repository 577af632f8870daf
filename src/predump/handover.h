// The freeze and what follows: last pages, state, and the passing of the right to run (DESIGN 10).
#ifndef PREDUMP_PREDUMP_HANDOVER_H_
#define PREDUMP_PREDUMP_HANDOVER_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "src/predump/engine.h"
#include "src/predump/report.h"
#include "src/predump/target_link.h"

namespace predump {

struct HandoverResult {
  MigrationStatus status = MigrationStatus::kFailed;
  std::string message;  // what became of the process
  // The freeze came at a bad moment: a child process had just appeared, or the process was holding
  // something that cannot move. It runs on here and the target still takes rounds, so that another
  // one, with this number, and another try may follow.
  bool try_again = false;
  bool may_stay_so = false;  // what it holds may be there for good
};

// Freezes the process, sends the rest as round `final_round` of the session and hands over, to a
// server that will run it, or one that stores it (Engine::stores_images). An error: the process
// runs on here as it was and the target has nothing. Otherwise the result says where it runs;
// kParked: it is stopped here, journalled, and `predump resolve` is to settle it.
absl::StatusOr<HandoverResult> HandOver(Engine& engine, TargetLink& link,
                                        const std::string& session_id, uint64_t final_round);

}  // namespace predump

#endif  // PREDUMP_PREDUMP_HANDOVER_H_
