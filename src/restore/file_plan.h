// From captured files to open descriptors.
//
// Numbers are predicted: an opening call gives the lowest free descriptor, and everything was
// closed before, so the plan knows what every call returns and puts each file at its numbers with
// as few calls as can be. The predictions are verified after the run.
//
// Order: every file at its descriptors, then what needs several of them at once (queued data,
// shutdowns, epoll members).
#ifndef PREDUMP_RESTORE_FILE_PLAN_H_
#define PREDUMP_RESTORE_FILE_PLAN_H_

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "proto/state.pb.h"
#include "src/images/image_set.h"
#include "src/restore/call_plan.h"
#include "src/restore/landing_process.h"

namespace predump::restore::internal {

class FilePlan {
 public:
  // `elapsed_ns`: time since the freeze, by which running timers have come nearer.
  FilePlan(LandingProcess& process, const proto::ProcessState& state,
           const images::FileIndex& files, int64_t elapsed_ns, CallPlan& plan);

  // Lists all calls. Errors: Unimplemented for a kind of file that is not carried.
  absl::Status Add();
  // The highest number used while restoring, for RLIMIT_NOFILE.
  int highest_descriptor() const { return highest_ + 2; }

  struct BoundPath {
    CallPlan::Id bind;
    std::string path;
  };
  // Sockets bound to the file system: to be unlinked if the building fails after all.
  const std::vector<BoundPath>& bound_paths() const { return bound_paths_; }

 private:
  friend class SocketPlan;
  using Id = CallPlan::Id;

  absl::Status AddFile(const criu::file_entry& file);
  absl::Status AddRegular(const criu::file_entry& file);
  absl::Status AddTerminal(const criu::file_entry& file);
  void AddPipe(uint32_t pipe_id);
  void AddEventfd(const criu::file_entry& file);
  void AddTimerfd(const criu::file_entry& file);
  void AddEpollMembers(const criu::file_entry& file);

  // `opened` returns one new descriptor for `file`: puts it at all its numbers. Gives the first.
  int Place(Id opened, const criu::file_entry& file);
  // Two new descriptors: first for `a`, second for `b` (null: an end nobody has, closed by
  // ClosePairEnds). Gives usable numbers of both.
  std::pair<int, int> PlacePair(const criu::file_entry* a, const criu::file_entry* b);
  // Closes what PlacePair left open for an absent end.
  void CloseSpare(int fd);
  // Status flags that fcntl(2) can set, and the owner of signals.
  void SetStatusFlags(int fd, uint32_t flags, const criu::file_entry& file);
  int LowestFree();
  void MarkUsed(int fd) { used_[static_cast<size_t>(fd)] = true; }
  // "fd 7" or, without descriptors, "file 12".
  std::string Name(const criu::file_entry& file) const;
  const std::vector<const criu::fdinfo_entry*>& Descriptors(uint32_t file_id) const;

  LandingProcess& process_;
  const proto::ProcessState& state_;
  const images::FileIndex& files_;
  int64_t elapsed_ns_;
  CallPlan& plan_;
  absl::flat_hash_map<uint32_t, std::vector<const criu::fdinfo_entry*>> descriptors_;
  std::vector<bool> used_;
  int lowest_ = 0;           // nothing below it is free: numbers are only ever taken
  std::set<uint32_t> done_;  // files placed together with another one
  int highest_ = 2;          // of all descriptors of the state
  std::vector<BoundPath> bound_paths_;
};

}  // namespace predump::restore::internal

#endif  // PREDUMP_RESTORE_FILE_PLAN_H_
