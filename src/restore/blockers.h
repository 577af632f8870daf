// How a check of this host notes what keeps a process away.
#ifndef PREDUMP_RESTORE_BLOCKERS_H_
#define PREDUMP_RESTORE_BLOCKERS_H_

#include <string>
#include <utility>
#include <vector>

#include "proto/session.pb.h"

namespace predump::restore::internal {

using Blockers = std::vector<proto::Blocker>;

inline void AddBlocker(Blockers& blockers, std::string what, std::string reason,
                       std::string advice = "") {
  proto::Blocker blocker;
  blocker.set_what(std::move(what));
  blocker.set_reason(std::move(reason));
  if (!advice.empty()) blocker.set_advice(std::move(advice));
  blockers.push_back(std::move(blocker));
}

}  // namespace predump::restore::internal

#endif  // PREDUMP_RESTORE_BLOCKERS_H_
