// What a stored state asks for that a restorer here cannot give.
//
// A process that predump captured was looked at before; images of CRIU's making, or edited ones,
// may say anything CRIU has a word for. What ProcessState has no word for, images::ReadState has
// named; here is the rest. Thread rule: pure.
#ifndef PREDUMP_RESTORE_CARRIED_H_
#define PREDUMP_RESTORE_CARRIED_H_

#include <vector>

#include "proto/session.pb.h"
#include "proto/state.pb.h"

namespace predump::restore {

// Everything in `state` that the builder does not carry, by name.
std::vector<proto::Blocker> FindUncarried(const proto::ProcessState& state);

// Takes out what is not carried and what images::ReadState has refused, so that the rest of a set
// that is refused anyway can be checked as well. Such a state is good for nothing else.
void TakeOutUncarried(proto::ProcessState& state);

}  // namespace predump::restore

#endif  // PREDUMP_RESTORE_CARRIED_H_
