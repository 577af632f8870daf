// The sink of criu://HOST:PORT: each round is one connection to a page server of CRIU's, and one
// image directory there.
//
// `criu page-server` serves one connection and ends: whoever drives the rounds starts another one
// for the next round, with the directory of the round before as its parent, while we wait for it.
// An image directory says of every page where it is: PRESENT in this round, or PARENT where an
// earlier one has it. I1: `known_` is what the directories so far hold of the process as it is, and
// every page of it is in each further one. Thread rule: the migrating thread.
#ifndef PREDUMP_PREDUMP_CRIU_SINK_H_
#define PREDUMP_PREDUMP_CRIU_SINK_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "src/predump/cancellation.h"
#include "src/predump/page_sink.h"
#include "src/transport/connector.h"
#include "src/transport/page_server_client.h"

namespace predump {

struct CriuSinkOptions {
  std::string name;  // of the server, for messages
  transport::Connector connect;
  transport::page_server::HeaderSize header = transport::page_server::HeaderSize::kOld;
  uint32_t pid = 0;  // of the innermost pid namespace
  absl::Duration connect_timeout = absl::Seconds(10);
  absl::Duration reply_timeout = absl::Seconds(10);
  // How long the next server is waited for, once the first has served a round.
  absl::Duration patience = absl::Seconds(30);
  // Told what a person should know.
  std::function<void(const std::string&)> note;
};

class CriuSink final : public PageSink {
 public:
  // `cancellation` outlives the sink, and may end each of its connections.
  CriuSink(CriuSinkOptions options, Cancellation& cancellation)
      : options_(std::move(options)), cancellation_(cancellation) {}

  // Connects. Errors: Unavailable, DeadlineExceeded where no server can be reached or none that
  // understands us; Cancelled.
  absl::Status AwaitReady() override;
  absl::StatusOr<pagemap::ExtentSet> BeginRound(const pagemap::VmaList& vmas,
                                                const pagemap::DirtySet& dirty) override;
  absl::Status Pages(std::span<const pagemap::Extent> extents,
                     pagemap::PageSource& source) override;
  absl::Status EndRound(uint64_t number, transport::Deadline deadline) override;
  int fd() const override { return connection_->client.fd(); }
  base::ByteCount bytes_sent() const override;
  absl::Duration round_trip() const override { return round_trip_; }

 private:
  struct Connection {
    transport::PageServerClient client;
    std::unique_ptr<WatchedSocket> watched;  // after the client, taken back before that closes
  };

  absl::StatusOr<base::UniqueFd> Connect();
  // Announces what earlier rounds have, up to `end`.
  absl::Status HolesUpTo(base::RemoteAddress end);
  absl::Status Annotated(const absl::Status& status) const;

  CriuSinkOptions options_;
  Cancellation& cancellation_;
  std::optional<Connection> connection_;  // of the round that is under way
  uint64_t rounds_ = 0;                   // that are stored
  bool told_of_missing_parent_ = false;
  pagemap::VmaList layout_;
  pagemap::ExtentSet known_;    // see I1
  pagemap::ExtentSet holes_;    // of this round
  size_t next_hole_ = 0;        // not announced yet
  pagemap::ExtentSet arrived_;  // in this round
  base::ByteCount bytes_before_;
  absl::Duration round_trip_;
};

}  // namespace predump

#endif  // PREDUMP_PREDUMP_CRIU_SINK_H_
