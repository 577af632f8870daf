// What of a ProcessState the images have no room for, taken out of it and put back.
//
// Thread rule: pure.
#ifndef PREDUMP_IMAGES_STATE_EXTRA_H_
#define PREDUMP_IMAGES_STATE_EXTRA_H_

#include "proto/state.pb.h"
#include "proto/stored.pb.h"

namespace predump::images::internal {

// The parts of `state` that no image says.
proto::ProcessState PartsBesideImages(const proto::ProcessState& state);

// Adds them to `state`, which was read from images and decides wherever both say something: what
// belongs to threads, files, pipes and mappings that are not in it (any more) is left out, and what
// belonged to other registers or another extended state as well.
void AddPartsBesideImages(const proto::StoredExtra& stored, proto::ProcessState& state);

// Sets what ProcessState holds a second time, for the restorer's convenience, from the images.
void FillFromImages(proto::ProcessState& state);

// Puts the late signals of `stored` that are for `thread` (or, in the leader, for the process) into
// its queues of pending ones, where CRIU and predump both find them.
void QueueLateSignals(const proto::StoredExtra& stored, proto::ThreadState& thread);

}  // namespace predump::images::internal

#endif  // PREDUMP_IMAGES_STATE_EXTRA_H_
