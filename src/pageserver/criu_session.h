// A CRIU client's connection (`criu pre-dump` or `criu dump` with --page-server), stored as one
// image directory.
//
// Published when the client closes in order, before it is told so; nothing is kept of one that
// leaves without closing. What the store cannot take (a full disk, a page that the parent lacks) is
// told by the answer to kClose, and everything until then is taken and dropped: a client that is
// cut off in the middle may hold a frozen process.
// Thread rule: one thread.
#ifndef PREDUMP_PAGESERVER_CRIU_SESSION_H_
#define PREDUMP_PAGESERVER_CRIU_SESSION_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "src/base/unique_fd.h"
#include "src/images/image_store.h"
#include "src/pageserver/server.h"
#include "src/pageserver/session.h"

namespace predump::pageserver {

struct CriuClientOptions {
  bool no_parent = false;  // never build on the latest directory
  // How long the client may say nothing, and take nothing.
  absl::Duration patience = absl::Minutes(10);
  // How long another writer of the store may take to get out of the way.
  absl::Duration store_patience = absl::Seconds(5);
  // As ImageStore::Begin has it.
  std::function<void(const images::LockedStore&)> before_tidying = [](const images::LockedStore&) {
  };
};

struct CriuClientResult {
  std::string path;  // of the directory that was published
  size_t objects = 0;
  uint64_t present = 0;  // pages that came
  uint64_t in_parent = 0;
};

// Serves a client whose `first_bytes` (8) have been read from `socket`. When `stop_fd` can be read,
// the server ends. Errors: Unavailable: the client left without closing, or closed with nothing
// sent; DataLoss: what it sent is no sense; Unimplemented: it wants what is not served here;
// otherwise from the store. Nothing is kept with any of them.
absl::StatusOr<CriuClientResult> ServeCriuClient(base::UniqueFd socket, int stop_fd,
                                                 const std::string& first_bytes,
                                                 const images::ImageStore& store,
                                                 const CriuClientOptions& options);

// The same as a session process does it; logs what happens and returns its exit status.
int RunCriuSession(const ServerOptions& options, SessionArguments arguments,
                   const std::string& first_bytes);

}  // namespace predump::pageserver

#endif  // PREDUMP_PAGESERVER_CRIU_SESSION_H_
