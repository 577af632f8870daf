// Collects everything that keeps a process from moving, so that it is told in one message.
#ifndef PREDUMP_CHECKPOINT_BLOCKER_LIST_H_
#define PREDUMP_CHECKPOINT_BLOCKER_LIST_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "proto/session.pb.h"

namespace predump::checkpoint {

class BlockerList {
 public:
  // `what` names the thing ("fd 7", "mapping 7f00-7f10", "attribute seccomp"), `reason` says why in
  // plain words, `advice` what can be done, empty where nothing can. A repeated {what, reason} is
  // kept once.
  void Add(std::string what, std::string reason, std::string advice = "");

  bool empty() const { return blockers_.empty(); }
  const std::vector<proto::Blocker>& blockers() const { return blockers_; }
  std::vector<proto::Blocker> Take() && { return std::move(blockers_); }

  // FailedPrecondition that lists them all, "what: reason; what: reason"; OK when there are none.
  absl::Status ToStatus() const;

 private:
  std::vector<proto::Blocker> blockers_;
};

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_BLOCKER_LIST_H_
