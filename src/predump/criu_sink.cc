#include "src/predump/criu_sink.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"
#include "src/base/errors.h"
#include "src/pagemap/layout.h"
#include "src/transport/socket.h"

namespace predump {
namespace {

using pagemap::Extent;
using transport::Deadline;
using transport::PageServerClient;

// Nothing tells that a server has begun to listen.
constexpr absl::Duration kConnectPause = absl::Milliseconds(20);

}  // namespace

absl::Status CriuSink::Annotated(const absl::Status& status) const {
  return base::Annotate(status, absl::StrCat("page server ", options_.name));
}

absl::StatusOr<base::UniqueFd> CriuSink::Connect() {
  const transport::Deadline until = Deadline::After(options_.patience);
  for (;;) {
    absl::StatusOr<base::UniqueFd> socket =
        options_.connect(Deadline::After(options_.connect_timeout));
    // The first one must be there; the next one is started when the one before has ended.
    if (rounds_ == 0 || !absl::IsUnavailable(socket.status())) return socket;
    if (until.passed()) {
      return absl::UnavailableError(absl::StrCat("round ", rounds_, " waited for ",
                                                 absl::FormatDuration(options_.patience),
                                                 ", but no server listened again: CRIU's serves "
                                                 "one round, and another one must be started "
                                                 "for the next (",
                                                 socket.status().message(), ")"));
    }
    if (cancellation_.AwaitRequest(std::min(kConnectPause, until.Remaining()))) {
      return absl::CancelledError(cancellation_.reason());
    }
  }
}

absl::Status CriuSink::AwaitReady() {
  if (connection_.has_value()) return absl::OkStatus();
  absl::StatusOr<base::UniqueFd> socket = Connect();
  if (!socket.ok()) return Annotated(socket.status());
  PageServerClient client(*std::move(socket), options_.header, options_.pid);
  auto watched = std::make_unique<WatchedSocket>(cancellation_, client.fd());
  const absl::Status opened = client.Open(Deadline::After(options_.reply_timeout));
  if (!opened.ok()) {
    const bool old = options_.header == transport::page_server::HeaderSize::kOld;
    return absl::Status(
        opened.code(),
        absl::StrCat("page server ", options_.name, ": ", opened.message(),
                     " at the first message, which had ",
                     old ? "24 bytes, as CRIU up to 4.1.1 has it; for CRIU 4.2 and later give "
                           "--criu-header 32"
                         : "32 bytes, as CRIU from 4.2 has it; for CRIU up to 4.1.1 give "
                           "--criu-header 24"));
  }
  connection_.emplace(Connection{std::move(client), std::move(watched)});
  return absl::OkStatus();
}

absl::StatusOr<pagemap::ExtentSet> CriuSink::BeginRound(const pagemap::VmaList& vmas,
                                                        const pagemap::DirtySet& dirty) {
  for (const pagemap::LayoutOp& op : pagemap::DiffLayout(layout_, vmas)) known_.Subtract(op.range);
  layout_ = vmas;
  known_.Subtract(dirty.drop);
  pagemap::ExtentSet pages = dirty.pages;
  holes_ = known_;
  holes_.Subtract(pages);
  next_hole_ = 0;
  arrived_.clear();
  if (connection_->client.has_parent() || holes_.empty()) return pages;
  if (!told_of_missing_parent_ && options_.note) {
    options_.note(absl::StrCat(
        "round ", rounds_, ": the page server at ", options_.name,
        " has no parent directory with the round before (criu page-server --prev-images-dir): all "
        "pages are sent again"));
  }
  told_of_missing_parent_ = true;
  pages.AddAll(holes_);
  holes_.clear();
  return pages;
}

absl::Status CriuSink::HolesUpTo(base::RemoteAddress end) {
  const std::vector<Extent>& holes = holes_.extents();
  while (next_hole_ < holes.size() && holes[next_hole_].start() < end) {
    PREDUMP_RETURN_IF_ERROR(Annotated(connection_->client.Hole(holes[next_hole_])));
    ++next_hole_;
  }
  return absl::OkStatus();
}

absl::Status CriuSink::Pages(std::span<const Extent> extents, pagemap::PageSource& source) {
  PageServerClient& client = connection_->client;
  for (const Extent& extent : extents) {
    PREDUMP_RETURN_IF_ERROR(HolesUpTo(extent.start()));
    PREDUMP_RETURN_IF_ERROR(Annotated(client.PagesHeader(extent)));
    if (const absl::Status pushed = source.Push(client.fd(), extent.size()); !pushed.ok()) {
      return Annotated(client.Explain(pushed));
    }
    arrived_.Add(extent);
  }
  return absl::OkStatus();
}

absl::Status CriuSink::EndRound(uint64_t number, Deadline deadline) {
  PREDUMP_RETURN_IF_ERROR(HolesUpTo(base::RemoteAddress(UINT64_MAX)));
  const absl::Status closed = connection_->client.Close(deadline);
  PREDUMP_RETURN_IF_ERROR(Annotated(base::Annotate(closed, absl::StrCat("end of round ", number))));
  round_trip_ = transport::RoundTrip(fd());
  bytes_before_ += connection_->client.bytes_sent();
  connection_.reset();
  // What vanished on the way is in no directory any more.
  known_ = std::move(holes_);
  known_.AddAll(arrived_);
  holes_.clear();
  ++rounds_;
  return absl::OkStatus();
}

base::ByteCount CriuSink::bytes_sent() const {
  base::ByteCount bytes = bytes_before_;
  if (connection_.has_value()) bytes += connection_->client.bytes_sent();
  return bytes;
}

}  // namespace predump
