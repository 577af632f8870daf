#include "src/transport/connector.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace predump::transport {

Connector TcpConnector(Address address, SocketOptions options) {
  return [address = std::move(address), options = std::move(options)](Deadline deadline) {
    return Connect(address, options, deadline);
  };
}

absl::StatusOr<Connector> ConnectorTo(const Endpoint& endpoint, const SocketOptions& options) {
  switch (endpoint.kind()) {
    case Endpoint::Kind::kNative:
    case Endpoint::Kind::kCriu:
      return TcpConnector(endpoint.address(), options);
    case Endpoint::Kind::kFile:
    case Endpoint::Kind::kSsh:
      break;
  }
  return absl::InvalidArgumentError(
      absl::StrCat(endpoint.ToString(), " is no server that is there to be connected to"));
}

}  // namespace predump::transport
