// What predump keeps beside CRIU's images, read apart from the rest of them.
//
// Thread rule: a free function.
#ifndef PREDUMP_PAGESERVER_STORED_EXTRA_H_
#define PREDUMP_PAGESERVER_STORED_EXTRA_H_

#include "absl/status/statusor.h"
#include "proto/stored.pb.h"

namespace predump::pageserver {

// NotFound: the directory has none (rounds only, or not predump's). DataLoss: it is broken.
absl::StatusOr<proto::StoredExtra> ReadStoredExtra(int directory_fd);

}  // namespace predump::pageserver

#endif  // PREDUMP_PAGESERVER_STORED_EXTRA_H_
