#include "src/predump/target_link.h"

#include <errno.h>
#include <sys/socket.h>
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

namespace {

// A person may have to find and type a password.
constexpr absl::Duration kSshTimeout = absl::Minutes(2);

// The words of a failure are sent before the number.
constexpr absl::Duration kWordsPatience = absl::Milliseconds(500);

// A server of our own, and the word to give up waiting for it.
class CommandWay {
 public:
  static absl::StatusOr<std::shared_ptr<CommandWay>> Create(const transport::Endpoint& endpoint,
                                                            const ServerCommandOptions& options,
                                                            Cancellation& cancellation) {
    int pair[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) {
      return base::ErrnoError(errno, "socketpair");
    }
    return std::shared_ptr<CommandWay>(new CommandWay(
        endpoint, options, cancellation, base::UniqueFd(pair[0]), base::UniqueFd(pair[1])));
  }

  absl::StatusOr<base::UniqueFd> Connect(Deadline deadline) { return command_.Connect(deadline); }

 private:
  CommandWay(const transport::Endpoint& endpoint, const ServerCommandOptions& options,
             Cancellation& cancellation, base::UniqueFd cancelled, base::UniqueFd stop)
      : cancelled_(std::move(cancelled)),
        stop_(std::move(stop)),
        watched_(cancellation, cancelled_.get()),
        command_(endpoint, options, stop_.get()) {}

  base::UniqueFd cancelled_;  // shut down on request, which its other end tells
  base::UniqueFd stop_;
  WatchedSocket watched_;
  ServerCommand command_;
};

}  // namespace

absl::StatusOr<LinkOptions> LinkOptions::To(const transport::Endpoint& endpoint,
                                            const transport::SocketOptions& socket,
                                            const ServerCommandOptions& command,
                                            Cancellation& cancellation) {
  if (endpoint.kind() == transport::Endpoint::Kind::kCriu) {
    return absl::InvalidArgumentError(
        absl::StrCat(endpoint.ToString(),
                     " is a page server of CRIU's, which takes memory and answers no "
                     "questions"));
  }
  LinkOptions options;
  options.endpoint = endpoint;
  using Kind = transport::Endpoint::Kind;
  if (endpoint.kind() != Kind::kSsh && endpoint.kind() != Kind::kFile) {
    PREDUMP_ASSIGN_OR_RETURN(options.connect, transport::ConnectorTo(endpoint, socket));
    return options;
  }
  if (endpoint.kind() == Kind::kSsh) options.connect_timeout = kSshTimeout;
  PREDUMP_ASSIGN_OR_RETURN(std::shared_ptr<CommandWay> way,
                           CommandWay::Create(endpoint, command, cancellation));
  options.connect = [way = std::move(way)](Deadline deadline) { return way->Connect(deadline); };
  return options;
}

absl::StatusOr<TargetLink> TargetLink::Connect(const LinkOptions& options,
                                               const proto::HostFacts& facts,
                                               Cancellation& cancellation) {
  PREDUMP_ASSIGN_OR_RETURN(base::UniqueFd socket,
                           options.connect(Deadline::After(options.connect_timeout)));
  auto watched = std::make_unique<WatchedSocket>(cancellation, socket.get());
  PREDUMP_ASSIGN_OR_RETURN(ControlChannel control, ControlChannel::Adopt(std::move(socket)));
  const std::string peer = absl::StrCat("page server ", options.endpoint.ToString());
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
                           options_.connect(Deadline::After(options_.connect_timeout)));
  auto watched = std::make_unique<WatchedSocket>(*cancellation_, socket.get());
  PREDUMP_ASSIGN_OR_RETURN(transport::DataWriter data,
                           transport::DataWriter::Start(std::move(socket), token));
  data_.emplace(std::move(data));
  watched_data_ = std::move(watched);
  return absl::OkStatus();
}

absl::Status TargetLink::Explain(const absl::Status& failure) {
  const absl::Status said =
      control_.Expect<proto::Running>(proto::CONTROL_RUNNING, Deadline::After(kWordsPatience))
          .status();
  return absl::IsFailedPrecondition(said) ? said : failure;
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
        absl::StrCat("the host at ", options.endpoint.ToString(),
                     " is not the one the process was sent to, or was restarted since: boot ",
                     host.boot_id(), " instead of ", target.boot_id));
  }
  if (host.fate_store_id() != target.store_id) {
    return absl::FailedPreconditionError(
        absl::StrCat("the page server at ", options.endpoint.ToString(),
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
