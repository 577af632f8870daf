// What a set of CRIU's images may hold of a process that predump has no words for: each part as a
// blocker, so that nobody restores half a process.
//
// Thread rule: free functions.
#ifndef PREDUMP_IMAGES_FOREIGN_PARTS_H_
#define PREDUMP_IMAGES_FOREIGN_PARTS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "proto/session.pb.h"
#include "proto/state.pb.h"

namespace predump::images::internal {

// Of images that are there (`names`), hold something, and are read by nobody here. Unknown ones
// with the suffix .img count.
absl::Status AddForeignImages(int directory_fd, const std::vector<std::string>& names,
                              std::vector<proto::Blocker>& blockers);

// Of entries in the images that were read.
void AddForeignEntries(const proto::ProcessState& state, std::vector<proto::Blocker>& blockers);

}  // namespace predump::images::internal

#endif  // PREDUMP_IMAGES_FOREIGN_PARTS_H_
