// How much room the calls take that build a process, and whether there is as much.
//
// Thread rule: free functions.
#ifndef PREDUMP_RESTORE_PLAN_ROOM_H_
#define PREDUMP_RESTORE_PLAN_ROOM_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "proto/state.pb.h"

namespace predump::restore {

// ResourceExhausted for a state, or what is known of one before its freeze, that could not be built
// anywhere: thousands of threads, tens of thousands of descriptors.
absl::Status CheckRoomToBuild(const proto::ProcessState& state);

namespace internal {

struct PlanRoom {
  size_t calls = 0;
  size_t data_bytes = 0;
  // Of the trampoline, in whole pages.
  uint64_t bytes() const;
};

// Of the plan that the leader runs, and of that of each other thread.
PlanRoom LeaderRoom(const proto::ProcessState& state);
PlanRoom ThreadRoom(const proto::ThreadState& thread);

}  // namespace internal
}  // namespace predump::restore

#endif  // PREDUMP_RESTORE_PLAN_ROOM_H_
