#include "src/pageserver/arrivals.h"

#include "spdlog/spdlog.h"
#include "src/base/errors.h"
#include "src/transport/descriptor_passing.h"

namespace predump::pageserver {

absl::StatusOr<std::optional<Arrivals::Connection>> Arrivals::Accept(
    const transport::SocketOptions& options) {
  for (;;) {
    absl::StatusOr<transport::AcceptedConnection> accepted = transport::Accept(fd_.get());
    if (absl::IsUnavailable(accepted.status())) return std::nullopt;
    if (!accepted.ok()) return accepted.status();
    std::string peer = accepted->peer.ToString();
    const absl::Status tuned = transport::ApplyOptions(accepted->fd.get(), options);
    if (tuned.ok()) return Connection{std::move(accepted->fd), std::move(peer)};
    spdlog::warn("connection from {}: {}", peer, std::string(tuned.message()));
  }
}

absl::StatusOr<std::optional<Arrivals::Connection>> Arrivals::TakeHandedOver() {
  absl::StatusOr<std::optional<base::UniqueFd>> passed = transport::ReceiveDescriptor(fd_.get());
  if (!passed.ok()) {
    Close();
    if (absl::IsUnavailable(passed.status())) return std::nullopt;
    return passed.status();
  }
  if (!passed->has_value()) return std::nullopt;
  PREDUMP_RETURN_IF_ERROR(transport::SetBlocking((*passed)->get(), false));
  return Connection{*std::move(*passed), peer_};
}

}  // namespace predump::pageserver
