// Opens connections to one server, however it is reached.
//
// Everything above connects through this one function, once for control and once for data, and
// depends on nothing but a stream socket: over TCP, or a unix socket behind which a relay or a
// server of our own works. What keeps such a server alive (a child process) belongs to the
// connector, and goes with the last copy of it.
#ifndef PREDUMP_TRANSPORT_CONNECTOR_H_
#define PREDUMP_TRANSPORT_CONNECTOR_H_

#include <functional>

#include "absl/status/statusor.h"
#include "src/base/unique_fd.h"
#include "src/transport/address.h"
#include "src/transport/deadline.h"
#include "src/transport/endpoint.h"
#include "src/transport/socket.h"

namespace predump::transport {

// The result is blocking and close-on-exec. Errors: as Connect; each names the place.
using Connector = std::function<absl::StatusOr<base::UniqueFd>(Deadline)>;

Connector TcpConnector(Address address, SocketOptions options);

// The way to a server that is there already, which is not tried yet. InvalidArgument for an
// endpoint whose server has to be started (kSsh, kFile).
absl::StatusOr<Connector> ConnectorTo(const Endpoint& endpoint, const SocketOptions& options);

}  // namespace predump::transport

#endif  // PREDUMP_TRANSPORT_CONNECTOR_H_
