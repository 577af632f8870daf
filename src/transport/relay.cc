#include "src/transport/relay.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/transport/deadline.h"
#include "src/transport/descriptor_passing.h"
#include "src/transport/relay_frame.h"
#include "src/transport/relay_stream.h"

namespace predump::transport {
namespace {

constexpr size_t kReadBytes = 256u << 10;
// A proper relay reads, and makes us answer little. One that does neither shall not fill our
// memory.
constexpr size_t kMostOutput = 16u << 20;

bool IsSocket(int fd) {
  struct stat about;
  return ::fstat(fd, &about) == 0 && S_ISSOCK(about.st_mode);
}

class Relay final : private RelayFrames {
 public:
  Relay(RelaySide side, RelayEnds ends, const RelayOptions& options)
      : side_(side),
        options_(options),
        in_(std::move(ends.in)),
        out_(std::move(ends.out)),
        channel_(std::move(ends.channel)),
        in_is_socket_(IsSocket(in_.get())),
        out_is_socket_(IsSocket(out_.get())),
        buffer_(std::make_unique<char[]>(kReadBytes)),
        heard_until_(Deadline::After(options.silence_limit)),
        next_heartbeat_(Deadline::After(options.heartbeat)) {}

  absl::Status Run() {
    output_.AppendHello(options_.window_bytes);
    absl::Status status;
    while (status.ok() && !IsOver()) status = Step();
    streams_.clear();
    return status.ok() ? verdict_ : status;
  }

 private:
  // Nothing is left to do, or no time to do it in.
  bool IsOver() const {
    if (end_deadline_.has_value() && end_deadline_->passed()) return true;
    return !in_.valid() && std::none_of(streams_.begin(), streams_.end(), [](const auto& stream) {
      return stream.has_undelivered();
    });
  }

  absl::Status Step() {
    const bool takes = takes_streams();
    std::vector<pollfd> watched = {{in_.get(), POLLIN, 0},
                                   {output_.pending().empty() ? -1 : out_.get(), POLLOUT, 0},
                                   {channel_.get(), static_cast<short>(takes ? POLLIN : 0), 0}};
    const bool room = out_.valid() && output_.pending().size() < RelayOutput::kEnough;
    for (const RelayStream& stream : streams_) watched.push_back(stream.Watch(room));
    PREDUMP_RETURN_IF_ERROR(Wait(watched));
    // Streams come and go below: what was seen belongs to the ones there were.
    for (size_t i = 0; i + 3 < watched.size(); ++i) {
      if (watched[i + 3].revents != 0) streams_[i].Advance(watched[i + 3].revents, output_);
    }
    if (watched[0].revents != 0) PREDUMP_RETURN_IF_ERROR(ReadIn());
    if (watched[2].revents != 0) {
      PREDUMP_RETURN_IF_ERROR(takes ? ReadChannel() : EndChannel(absl::OkStatus()));
    }
    std::erase_if(streams_, [](const RelayStream& stream) { return stream.finished(); });
    PREDUMP_RETURN_IF_ERROR(KeepAlive());
    WriteOut();
    CloseOutIfDone();
    return absl::OkStatus();
  }

  // Until the other relay has answered, no stream could say why it does not get through.
  bool takes_streams() const {
    return side_ == RelaySide::kAccepting ||
           (parser_.has_hello() && streams_.size() < options_.max_streams);
  }

  absl::Status Wait(std::vector<pollfd>& watched) {
    Deadline deadline = Deadline::Earlier(heard_until_, next_heartbeat_);
    if (side_ == RelaySide::kOpening && !parser_.has_hello()) deadline = Deadline::Never();
    if (end_deadline_.has_value()) deadline = Deadline::Earlier(deadline, *end_deadline_);
    timespec timeout = {};
    if (!deadline.never()) timeout = absl::ToTimespec(deadline.Remaining());
    const int ready =
        ::ppoll(watched.data(), watched.size(), deadline.never() ? nullptr : &timeout, nullptr);
    if (ready < 0 && errno != EINTR) return base::ErrnoError(errno, "ppoll");
    if (ready < 0) {
      for (pollfd& one : watched) one.revents = 0;
    }
    return absl::OkStatus();
  }

  absl::Status KeepAlive() {
    if (!parser_.has_hello() && side_ == RelaySide::kOpening) return absl::OkStatus();
    if (in_.valid() && heard_until_.passed()) {
      return absl::UnavailableError(absl::StrCat("nothing was heard of the other end for ",
                                                 absl::FormatDuration(options_.silence_limit)));
    }
    if (output_.pending().size() > kMostOutput) {
      return absl::DataLossError("the other relay asks much and reads nothing");
    }
    if (next_heartbeat_.passed()) {
      if (output_.pending().empty()) output_.Append({0, RelayKind::kAlive, 0});
      next_heartbeat_ = Deadline::After(options_.heartbeat);
    }
    return absl::OkStatus();
  }

  absl::Status ReadIn() {
    ssize_t n;
    do {
      n = in_is_socket_ ? ::recv(in_.get(), buffer_.get(), kReadBytes, MSG_DONTWAIT)
                        : ::read(in_.get(), buffer_.get(), kReadBytes);
    } while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN) return absl::OkStatus();
    if (n > 0) {
      heard_until_ = Deadline::After(options_.silence_limit);
      return parser_.Feed(absl::string_view(buffer_.get(), static_cast<size_t>(n)), *this);
    }
    in_ = base::UniqueFd();
    // An accepting one is told by nothing else that the conversation is over.
    const bool too_early = side_ == RelaySide::kOpening && channel_.valid();
    if (!parser_.has_hello()) {
      verdict_ = absl::UnavailableError("the other relay ended without an answer");
    } else if (too_early || !parser_.at_boundary()) {
      verdict_ = absl::UnavailableError("the connection broke off");
    }
    // What has come is delivered; nobody is there for what would go.
    DropOut();
    for (RelayStream& stream : streams_) {
      stream.TakeEnd();
      stream.TakeStop(output_);
    }
    output_.Clear();
    channel_ = base::UniqueFd();
    LimitEnd();
    return absl::OkStatus();
  }

  absl::Status OnHello(uint32_t window) override {
    peer_window_ = window;
    if (side_ == RelaySide::kAccepting) return absl::OkStatus();
    next_heartbeat_ = Deadline::After(options_.heartbeat);
    // Nobody left to tell is no error: the end of the channel will be seen.
    SendReady(channel_.get()).IgnoreError();
    return absl::OkStatus();
  }

  absl::Status OnFrame(const RelayHeader& header) override {
    if (header.kind == RelayKind::kAlive) return absl::OkStatus();
    if (header.kind == RelayKind::kOpen) return OpenFor(header.stream);
    PREDUMP_ASSIGN_OR_RETURN(RelayStream * stream, Find(header.stream));
    if (stream == nullptr) return absl::OkStatus();
    switch (header.kind) {
      case RelayKind::kCredit:
        return stream->TakeCredit(header.length);
      case RelayKind::kEnd:
        stream->TakeEnd();
        break;
      case RelayKind::kStop:
        stream->TakeStop(output_);
        break;
      default:
        break;
    }
    return absl::OkStatus();
  }

  absl::Status OnData(uint32_t id, absl::string_view bytes) override {
    PREDUMP_ASSIGN_OR_RETURN(RelayStream * stream, Find(id));
    return stream == nullptr ? absl::OkStatus() : stream->TakeData(bytes, output_);
  }

  // Nothing for one that has ended here, of which the other relay may not have heard yet.
  absl::StatusOr<RelayStream*> Find(uint32_t id) {
    for (RelayStream& stream : streams_) {
      if (stream.id() == id) return &stream;
    }
    if (id <= last_id_) return nullptr;
    return absl::DataLossError(
        absl::StrCat("the other relay speaks of stream ", id, ", which was never opened"));
  }

  absl::Status OpenFor(uint32_t id) {
    if (side_ != RelaySide::kAccepting || id <= last_id_) {
      return absl::DataLossError(absl::StrCat("the other relay may not open stream ", id));
    }
    if (streams_.size() >= options_.max_streams) {
      return absl::DataLossError("the other relay opens too many streams");
    }
    int pair[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) {
      return base::ErrnoError(errno, "socketpair");
    }
    base::UniqueFd local(pair[0]);
    const base::UniqueFd far(pair[1]);
    // Where it cannot be handed over its far end closes, and the stream with it.
    if (channel_.valid()) SendDescriptor(channel_.get(), far.get()).IgnoreError();
    AddStream(id, std::move(local));
    return absl::OkStatus();
  }

  void AddStream(uint32_t id, base::UniqueFd local) {
    last_id_ = id;
    streams_.emplace_back(id, std::move(local), peer_window_, options_.window_bytes);
  }

  absl::Status ReadChannel() {
    absl::StatusOr<std::optional<base::UniqueFd>> passed = ReceiveDescriptor(channel_.get());
    if (absl::IsUnavailable(passed.status())) return EndChannel(absl::OkStatus());
    if (!passed.ok()) return EndChannel(passed.status());
    if (!passed->has_value()) return absl::OkStatus();
    if (side_ == RelaySide::kAccepting) {
      return EndChannel(absl::DataLossError("a connection came from where they go to"));
    }
    const uint32_t id = last_id_ + 1;
    output_.Append({id, RelayKind::kOpen, 0});
    AddStream(id, *std::move(*passed));
    return absl::OkStatus();
  }

  // Whom we work for wants no more, or is gone: what its streams still hold is sent.
  absl::Status EndChannel(const absl::Status& why) {
    channel_ = base::UniqueFd();
    LimitEnd();
    return why;
  }

  void WriteOut() {
    while (out_.valid() && !output_.pending().empty()) {
      const absl::string_view bytes = output_.pending();
      ssize_t n;
      if (out_is_socket_) {
        n = ::send(out_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      } else {
        // The pipe may be somebody else's too, and stays as it is: blocking. So much never blocks.
        pollfd writable = {out_.get(), POLLOUT, 0};
        if (::poll(&writable, 1, 0) <= 0) return;
        n = ::write(out_.get(), bytes.data(), std::min<size_t>(bytes.size(), PIPE_BUF));
      }
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno == EAGAIN) return;
      if (n < 0) return DropOut();
      output_.RemovePrefix(static_cast<size_t>(n));
      next_heartbeat_ = Deadline::After(options_.heartbeat);
    }
    if (!out_.valid()) output_.Clear();
  }

  void CloseOutIfDone() {
    const bool all_sent = !channel_.valid() && output_.pending().empty() &&
                          std::all_of(streams_.begin(), streams_.end(),
                                      [](const auto& stream) { return stream.out_done(); });
    if (out_.valid() && all_sent) DropOut();
  }

  void DropOut() {
    if (!out_.valid()) return;
    // `in` may be the same socket.
    if (out_is_socket_) ::shutdown(out_.get(), SHUT_WR);
    out_ = base::UniqueFd();
  }

  void LimitEnd() {
    if (!end_deadline_.has_value()) end_deadline_ = Deadline::After(options_.end_limit);
  }

  const RelaySide side_;
  const RelayOptions options_;
  base::UniqueFd in_;
  base::UniqueFd out_;
  base::UniqueFd channel_;
  const bool in_is_socket_;
  const bool out_is_socket_;
  std::unique_ptr<char[]> buffer_;
  RelayParser parser_;
  RelayOutput output_;
  std::vector<RelayStream> streams_;
  uint32_t peer_window_ = 0;
  uint32_t last_id_ = 0;
  Deadline heard_until_;
  Deadline next_heartbeat_;
  std::optional<Deadline> end_deadline_;
  absl::Status verdict_;
};

}  // namespace

absl::Status RunRelay(RelaySide side, RelayEnds ends, const RelayOptions& options) {
  if (side == RelaySide::kAccepting) {
    PREDUMP_RETURN_IF_ERROR(AwaitReady(ends.channel.get(), Deadline::Never()));
  }
  return Relay(side, std::move(ends), options).Run();
}

}  // namespace predump::transport
