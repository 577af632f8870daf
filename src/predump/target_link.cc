#include "src/predump/target_link.h"

#include <unistd.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/kernel/time_offsets.h"

namespace predump {

using transport::ControlChannel;
using transport::Deadline;

absl::StatusOr<TargetLink> TargetLink::Connect(const LinkOptions& options,
                                               const proto::HostFacts& facts,
                                               Cancellation& cancellation) {
  PREDUMP_ASSIGN_OR_RETURN(base::UniqueFd socket,
                           transport::Connect(options.address, options.socket,
                                              Deadline::After(options.connect_timeout)));
  auto watched = std::make_unique<WatchedSocket>(cancellation, socket.get());
  PREDUMP_ASSIGN_OR_RETURN(ControlChannel control, ControlChannel::Adopt(std::move(socket)));
  const std::string peer = absl::StrCat("page server ", options.address.ToString());
  const Deadline deadline = Deadline::After(options.reply_timeout);
  absl::Status sent = control.SendMagic(deadline);
  if (!sent.ok()) return base::Annotate(sent, peer);
  absl::StatusOr<proto::ServerHello> server = transport::ClientHandshake(control, facts, deadline);
  if (!server.ok()) return base::Annotate(server.status(), peer);
  return TargetLink(options, std::move(control), *std::move(server), cancellation,
                    std::move(watched));
}

absl::StatusOr<proto::BeginReply> TargetLink::Begin(const proto::Begin& begin) {
  const Deadline deadline = Deadline::After(options_.reply_timeout);
  PREDUMP_RETURN_IF_ERROR(control_.Send(proto::CONTROL_BEGIN, begin, deadline));
  return control_.Expect<proto::BeginReply>(proto::CONTROL_BEGIN_REPLY, deadline);
}

absl::Status TargetLink::OpenData(const std::string& token) {
  PREDUMP_ASSIGN_OR_RETURN(base::UniqueFd socket,
                           transport::Connect(options_.address, options_.socket,
                                              Deadline::After(options_.connect_timeout)));
  auto watched = std::make_unique<WatchedSocket>(*cancellation_, socket.get());
  PREDUMP_ASSIGN_OR_RETURN(transport::DataWriter data,
                           transport::DataWriter::Start(std::move(socket), token));
  data_.emplace(std::move(data));
  watched_data_ = std::move(watched);
  return absl::OkStatus();
}

absl::StatusOr<ClockOffsets> TargetLink::MeasureClocks() {
  // Enough for one undisturbed round trip on a busy machine.
  constexpr int kPings = 8;
  PREDUMP_ASSIGN_OR_RETURN(const kernel::TimeOffsets ours, kernel::ReadTimeOffsets(::getpid()));
  ClockOffsets offsets{std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::max()};
  for (int i = 0; i < kPings; ++i) {
    const Deadline deadline = Deadline::After(options_.reply_timeout);
    PREDUMP_RETURN_IF_ERROR(control_.Send(proto::CONTROL_PING, proto::Ping(), deadline));
    PREDUMP_ASSIGN_OR_RETURN(const proto::Pong pong,
                             control_.Expect<proto::Pong>(proto::CONTROL_PONG, deadline));
    // Read after the answer: the difference is never too small, so no clock will go backwards.
    const int64_t monotonic = base::ClockNanoseconds(CLOCK_MONOTONIC) - ours.monotonic_ns;
    const int64_t boottime = base::ClockNanoseconds(CLOCK_BOOTTIME) - ours.boottime_ns;
    offsets.monotonic_ns = std::min(offsets.monotonic_ns, monotonic - pong.receiver_monotonic_ns());
    offsets.boottime_ns = std::min(offsets.boottime_ns, boottime - pong.receiver_boottime_ns());
  }
  return offsets;
}

absl::StatusOr<proto::Fate> AskFate(const LinkOptions& options, const proto::HostFacts& facts,
                                    const std::string& session_id, const TargetIdentity& target) {
  Cancellation never;
  PREDUMP_ASSIGN_OR_RETURN(TargetLink link, TargetLink::Connect(options, facts, never));
  const proto::HostFacts& host = link.server().host();
  if (host.boot_id() != target.boot_id) {
    return absl::FailedPreconditionError(
        absl::StrCat("the host at ", options.address.ToString(),
                     " is not the one the process was sent to, or was restarted since: boot ",
                     host.boot_id(), " instead of ", target.boot_id));
  }
  if (host.fate_store_id() != target.store_id) {
    return absl::FailedPreconditionError(
        absl::StrCat("the page server at ", options.address.ToString(),
                     " keeps its records elsewhere than the one the process was sent to, and knows "
                     "nothing of it; start it with the --state-dir that one had"));
  }
  proto::QueryFate query;
  query.set_session_id(session_id);
  const Deadline deadline = Deadline::After(options.reply_timeout);
  PREDUMP_RETURN_IF_ERROR(link.control().Send(proto::CONTROL_QUERY_FATE, query, deadline));
  return link.control().Expect<proto::Fate>(proto::CONTROL_FATE, deadline);
}

}  // namespace predump
