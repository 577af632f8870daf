// The source's connections to one page server: control and, once a session is accepted, data.
//
// Thread rule: one thread at a time, but for what Cancellation does to the sockets.
#ifndef PREDUMP_PREDUMP_TARGET_LINK_H_
#define PREDUMP_PREDUMP_TARGET_LINK_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/session.pb.h"
#include "src/predump/cancellation.h"
#include "src/predump/server_command.h"
#include "src/transport/connector.h"
#include "src/transport/control_channel.h"
#include "src/transport/data_writer.h"
#include "src/transport/endpoint.h"
#include "src/transport/socket.h"

namespace predump {

struct LinkOptions {
  // The way to `endpoint`, which is not tried yet, and the usual patience. `cancellation` ends
  // the waiting for a server that has to be started; it must live as long as copies of this.
  static absl::StatusOr<LinkOptions> To(const transport::Endpoint& endpoint,
                                        const transport::SocketOptions& socket,
                                        const ServerCommandOptions& command,
                                        Cancellation& cancellation);

  transport::Endpoint endpoint;  // for people; `connect` leads there
  transport::Connector connect;
  absl::Duration connect_timeout = absl::Seconds(10);
  absl::Duration reply_timeout = absl::Seconds(30);  // of everything but Ready and Running
};

// How the target host's clocks stand to ours.
struct ClockOffsets {
  int64_t monotonic_ns = 0;  // ours minus theirs, at least: never too small, too large by at most
  int64_t boottime_ns = 0;   // the shortest round trip seen
};

class TargetLink {
 public:
  // Connects and exchanges hellos. `cancellation` may end it at any time. Errors name the address.
  static absl::StatusOr<TargetLink> Connect(const LinkOptions& options,
                                            const proto::HostFacts& facts,
                                            Cancellation& cancellation);

  const LinkOptions& options() const { return options_; }
  const proto::ServerHello& server() const { return server_; }
  transport::ControlChannel& control() { return control_; }
  // Precondition: OpenData succeeded.
  transport::DataWriter& data() { return *data_; }
  bool has_data() const { return data_.has_value(); }

  // Asks whether the process may come. The reply's blockers are data, not an error.
  absl::StatusOr<proto::BeginReply> Begin(const proto::Begin& begin);

  // Opens the data connection of an accepted session.
  absl::Status OpenData(const std::string& token);

  // What the server says of `failure`, which the data connection met: it has the words, that
  // connection a number at most. `failure` where it says nothing for a moment.
  absl::Status Explain(const absl::Status& failure);

  // A few pings; host clocks outside any time namespace.
  absl::StatusOr<ClockOffsets> MeasureClocks();

 private:
  TargetLink(LinkOptions options, transport::ControlChannel control, proto::ServerHello server,
             Cancellation& cancellation, std::unique_ptr<WatchedSocket> watched)
      : options_(std::move(options)),
        control_(std::move(control)),
        server_(std::move(server)),
        cancellation_(&cancellation),
        watched_control_(std::move(watched)) {}

  LinkOptions options_;
  transport::ControlChannel control_;
  proto::ServerHello server_;
  std::optional<transport::DataWriter> data_;
  Cancellation* cancellation_;
  // After the connections, so that they are taken back before those close.
  std::unique_ptr<WatchedSocket> watched_control_;
  std::unique_ptr<WatchedSocket> watched_data_;
};

// Asks any server with the session's records what became of it; connects anew. FailedPrecondition
// where the host that answers is not the boot of the host the session was held with, or its records
// are not that one's: only they tell.
struct TargetIdentity {
  std::string boot_id;
  std::string store_id;
};
absl::StatusOr<proto::Fate> AskFate(const LinkOptions& options, const proto::HostFacts& facts,
                                    const std::string& session_id, const TargetIdentity& target);

}  // namespace predump

#endif  // PREDUMP_PREDUMP_TARGET_LINK_H_
