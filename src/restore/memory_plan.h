// From the landing's address space to the process's: what was staged and the vDSO go home, final
// protections and advice, the fields of mm.
//
// The pages are in place already; nothing here is per page but what mprotect(2) itself does.
#ifndef PREDUMP_RESTORE_MEMORY_PLAN_H_
#define PREDUMP_RESTORE_MEMORY_PLAN_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "proto/state.pb.h"
#include "src/base/units.h"
#include "src/images/image_set.h"
#include "src/restore/call_plan.h"
#include "src/restore/landing_process.h"

namespace predump::restore::internal {

class MemoryPlan {
 public:
  MemoryPlan(LandingProcess& process, const proto::ProcessState& state,
             const images::FileIndex& files);

  // Where the process wants addresses the trampoline has, moves the trampoline; finds the vDSO's
  // place. To be called before any plan is made. Errors: FailedPrecondition the vDSO differs.
  absl::Status Prepare();
  // Mappings of the process that the landing has in pieces become one. After Prepare.
  absl::Status JoinMappings() const;
  // Gives up the image, moves the vDSO and what was staged.
  void AddMoves(CallPlan& plan) const;
  void AddProtections(CallPlan& plan) const;
  // Advice, locks, names of mappings, mm fields and /proc/PID/exe. No descriptor may be open.
  void AddAttributes(CallPlan& plan) const;

 private:
  struct Move {
    KernelMapping from;
    uint64_t to = 0;
  };

  bool Occupied(uint64_t start, uint64_t bytes) const;
  absl::StatusOr<uint64_t> FindFree(uint64_t bytes) const;
  absl::Status PlaceKernelMappings();
  absl::Status MoveTrampoline();
  void AddMmFields(CallPlan& plan) const;

  LandingProcess& process_;
  const proto::ProcessState& state_;
  const images::FileIndex& files_;
  std::vector<Move> kernel_moves_;
  uint64_t detour_ = 0;  // where the vDSO waits while its place is still taken; 0: goes straight
};

}  // namespace predump::restore::internal

#endif  // PREDUMP_RESTORE_MEMORY_PLAN_H_
