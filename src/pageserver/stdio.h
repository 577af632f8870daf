// A server for the one peer at the other end of our standard input and output: `ssh HOST predump
// page-server --stdio`.
//
// A relay (transport/relay.h) in a process of its own holds the two, and nobody else does: neither
// the server nor what is restored keeps ssh waiting, and the server works on in peace when ssh
// dies.
#ifndef PREDUMP_PAGESERVER_STDIO_H_
#define PREDUMP_PAGESERVER_STDIO_H_

#include "absl/status/statusor.h"
#include "src/pageserver/server.h"

namespace predump::pageserver {

// Serves until the peer is done or gone; otherwise as ServeHandedOver. Descriptors 0 and 1 are
// /dev/null afterwards.
absl::StatusOr<int> ServeStdio(const ServerOptions& options);

}  // namespace predump::pageserver

#endif  // PREDUMP_PAGESERVER_STDIO_H_
