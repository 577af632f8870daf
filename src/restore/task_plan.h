// What belongs to threads and to the process as a whole besides memory and files: signals, timers,
// limits, names, scheduling, credentials, threads themselves.
#ifndef PREDUMP_RESTORE_TASK_PLAN_H_
#define PREDUMP_RESTORE_TASK_PLAN_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "proto/state.pb.h"
#include "src/images/image_set.h"
#include "src/restore/call_plan.h"
#include "src/restore/landing_process.h"

namespace predump::restore::internal {

class TaskPlan {
 public:
  TaskPlan(LandingProcess& process, const proto::ProcessState& state,
           const images::FileIndex& files, int64_t elapsed_ns)
      : process_(process), state_(state), files_(files), elapsed_ns_(elapsed_ns) {}

  // What this host cannot give: a hard limit, a capability. Errors name it.
  absl::Status CheckPossible() const;

  // Raises the soft limit of descriptors where restoring needs more than we have.
  void AddDescriptorRoom(CallPlan& plan, int highest) const;
  // Membarrier registrations: quick only while there is one thread.
  void AddEarly(CallPlan& plan) const;
  // One clone3(2) per thread but the leader. The new thread is known by its stack pointer, which
  // is ThreadMark(index).
  void AddThreads(CallPlan& plan) const;
  static uint64_t ThreadMark(size_t index) { return kHome + (index + 1) * 16; }
  // Of the whole process: directories, signal actions, queued signals, timers, limits.
  void AddProcess(CallPlan& plan) const;
  // Of one thread, to be run by it; last of all its credentials, which may take away the right to
  // do the rest.
  void AddThread(CallPlan& plan, const proto::ThreadState& thread) const;

  // What is set from outside, through /proc.
  absl::Status WriteProcFiles() const;

 private:
  const criu::task_core_entry& task() const { return state_.threads(0).core().tc(); }
  void AddLoginId(CallPlan& plan) const;
  void AddSignalActions(CallPlan& plan) const;
  void AddTimers(CallPlan& plan) const;
  void AddIds(CallPlan& plan, const criu::creds_entry& creds) const;
  void AddLimits(CallPlan& plan) const;
  void AddPendingSignals(CallPlan& plan, const proto::ThreadState& thread) const;
  void AddScheduling(CallPlan& plan, const proto::ThreadState& thread) const;
  void AddCredentials(CallPlan& plan, const criu::creds_entry& creds) const;
  bool SameCredentials(const criu::creds_entry& creds) const;

  LandingProcess& process_;
  const proto::ProcessState& state_;
  const images::FileIndex& files_;
  int64_t elapsed_ns_;
};

}  // namespace predump::restore::internal

#endif  // PREDUMP_RESTORE_TASK_PLAN_H_
