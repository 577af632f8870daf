// The building itself: all plans, run in the landing, checked to the last call.
#ifndef PREDUMP_RESTORE_BUILDER_H_
#define PREDUMP_RESTORE_BUILDER_H_

#include <sys/user.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/state.pb.h"
#include "src/base/clock.h"
#include "src/images/image_set.h"
#include "src/restore/call_plan.h"
#include "src/restore/file_plan.h"
#include "src/restore/landing_process.h"
#include "src/restore/memory_plan.h"
#include "src/restore/task_plan.h"

namespace predump::restore::internal {

class Builder {
 public:
  // The landing has stopped after its final mark. Both outlive the builder.
  Builder(LandingProcess& process, const proto::ProcessState& state);

  // On an error the landing is good for nothing but to be killed, and what it had made outside
  // itself (socket files) is gone again.
  absl::Status Build();

 private:
  absl::StatusOr<CallPlan> PlanLeader();
  absl::StatusOr<std::vector<CallPlan>> PlanThreads();
  absl::Status RunThreads(std::vector<CallPlan>& plans);
  absl::Status LoadRegisters();
  void NoteTimeLeft(size_t thread, const proto::InterruptedCall& call, user_regs_struct registers);
  void EndPhase(const char* name);

  LandingProcess& process_;
  const proto::ProcessState& state_;
  images::FileIndex files_;
  int64_t elapsed_ns_ = 0;
  MemoryPlan memory_;
  TaskPlan tasks_;
  std::vector<FilePlan::BoundPath> bound_paths_;
  base::Stopwatch phase_;
};

}  // namespace predump::restore::internal

#endif  // PREDUMP_RESTORE_BUILDER_H_
