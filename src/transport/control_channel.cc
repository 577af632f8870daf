#include "src/transport/control_channel.h"

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/transport/data_format.h"
#include "src/transport/socket.h"

namespace predump::transport {
namespace {

constexpr size_t kHeaderBytes = 8;
// A body grows as it arrives: a peer that announces much and sends little costs little.
constexpr size_t kBodyStep = 1u << 20;
constexpr char kPeerClosed[] = "the other end closed the connection";

struct FrameHeader {
  uint16_t type;
  uint16_t flags;
  uint32_t length;
};
static_assert(sizeof(FrameHeader) == kHeaderBytes);

void StampClocks(proto::HostFacts& facts) {
  facts.set_monotonic_ns(base::ClockNanoseconds(CLOCK_MONOTONIC));
  facts.set_boottime_ns(base::ClockNanoseconds(CLOCK_BOOTTIME));
}

// ParseFromString writes to standard error about missing fields; a peer must not be able to do
// that.
bool ParseQuietly(const std::string& bytes, google::protobuf::MessageLite& message) {
  return message.ParsePartialFromString(bytes) && message.IsInitialized();
}

absl::Status VersionMismatch(uint32_t theirs, absl::string_view their_program) {
  return absl::FailedPreconditionError(
      absl::StrCat("the other end speaks protocol version ", theirs,
                   their_program.empty() ? "" : absl::StrCat(" (predump ", their_program, ")"),
                   ", this one version ", kProtocolVersion, " (predump ", kProgramVersion, ")"));
}

}  // namespace

std::string ControlTypeName(int type) {
  if (!proto::ControlType_IsValid(type)) return absl::StrCat("message type ", type);
  // CONTROL_BEGIN_REPLY -> BeginReply, as the message is called.
  constexpr absl::string_view kPrefix = "CONTROL_";
  const std::string& full = proto::ControlType_Name(static_cast<proto::ControlType>(type));
  std::string name;
  bool word_start = true;
  for (const char c : absl::string_view(full).substr(kPrefix.size())) {
    if (c != '_') name.push_back(word_start ? c : absl::ascii_tolower(c));
    word_start = c == '_';
  }
  return name;
}

absl::Status StatusFromFailed(const proto::Failed& failed) {
  std::string text = absl::StrCat("the other end failed: ", failed.reason());
  for (const proto::Blocker& blocker : failed.blockers()) {
    absl::StrAppend(&text, "\n  ", blocker.what(), ": ", blocker.reason());
    if (blocker.has_advice()) absl::StrAppend(&text, " (", blocker.advice(), ")");
  }
  return absl::FailedPreconditionError(text);
}

absl::StatusOr<ControlChannel> ControlChannel::Adopt(base::UniqueFd socket) {
  PREDUMP_RETURN_IF_ERROR(SetBlocking(socket.get(), false));
  return ControlChannel(std::move(socket));
}

absl::Status ControlChannel::SendMagic(Deadline deadline) {
  const uint64_t magic = htole64(kControlMagic);
  return SendAll(absl::string_view(reinterpret_cast<const char*>(&magic), sizeof magic), deadline);
}

absl::Status ControlChannel::Send(proto::ControlType type,
                                  const google::protobuf::MessageLite& message, Deadline deadline) {
  // Asked first: protobuf would abort over a message that lacks required fields.
  if (!message.IsInitialized()) {
    return absl::InvalidArgumentError(absl::StrCat(ControlTypeName(type), " is not complete"));
  }
  const size_t size = message.ByteSizeLong();
  if (size > kMaxControlBytes) {
    return absl::InvalidArgumentError(absl::StrCat(ControlTypeName(type), " of ", size,
                                                   " bytes is larger than ", kMaxControlBytes));
  }
  FrameHeader header = {htole16(static_cast<uint16_t>(type)), 0,
                        htole32(static_cast<uint32_t>(size))};
  std::string frame(reinterpret_cast<const char*>(&header), sizeof header);
  frame.reserve(sizeof header + size);
  if (!message.AppendPartialToString(&frame)) {
    return absl::InternalError(absl::StrCat(ControlTypeName(type), " cannot be serialized"));
  }
  return base::Annotate(SendAll(frame, deadline), absl::StrCat("send ", ControlTypeName(type)));
}

absl::Status ControlChannel::SendAll(absl::string_view bytes, Deadline deadline) {
  PREDUMP_RETURN_IF_ERROR(broken_);
  while (!bytes.empty()) {
    const ssize_t n = ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n > 0) {
      bytes.remove_prefix(static_cast<size_t>(n));
      continue;
    }
    if (n == 0) return Broken("a send made no progress");
    if (errno == EINTR) continue;
    if (errno == EPIPE || errno == ECONNRESET) return absl::UnavailableError(kPeerClosed);
    if (errno != EAGAIN) return base::ErrnoError(errno, "send");
    PREDUMP_ASSIGN_OR_RETURN(const WaitResult result, WaitFor(socket_.get(), POLLOUT, deadline));
    if (result == WaitResult::kDeadline) {
      broken_ = absl::DeadlineExceededError("the other end does not read what it is sent");
      return broken_;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ControlFrame> ControlChannel::Receive(Deadline deadline) {
  for (;;) {
    PREDUMP_ASSIGN_OR_RETURN(std::optional<ControlFrame> frame, TryReceive());
    if (frame.has_value()) return *std::move(frame);
    // Asked here and not of the wait: a peer that trickles would keep the wait from ever seeing it.
    if (deadline.passed()) {
      return absl::DeadlineExceededError(header_filled_ == 0
                                             ? "the other end did not answer in time"
                                             : "the other end did not finish its message in time");
    }
    PREDUMP_RETURN_IF_ERROR(WaitFor(socket_.get(), POLLIN, deadline));
  }
}

absl::StatusOr<std::optional<ControlFrame>> ControlChannel::TryReceive() {
  PREDUMP_RETURN_IF_ERROR(broken_);
  if (header_filled_ < kHeaderBytes) {
    PREDUMP_ASSIGN_OR_RETURN(const bool complete, FillHeader());
    if (!complete) return std::nullopt;
    PREDUMP_RETURN_IF_ERROR(DecodeHeader());
  }
  std::string& body = incoming_.bytes;
  while (body_filled_ < body_bytes_) {
    if (body_filled_ == body.size())
      body.resize(std::min<size_t>(body_bytes_, body_filled_ + kBodyStep));
    PREDUMP_ASSIGN_OR_RETURN(const size_t n,
                             ReadSome(body.data() + body_filled_, body.size() - body_filled_));
    if (n == 0) return std::nullopt;
    body_filled_ += n;
  }
  header_filled_ = 0;
  body_filled_ = 0;
  return std::exchange(incoming_, ControlFrame());
}

absl::StatusOr<bool> ControlChannel::FillHeader() {
  while (header_filled_ < kHeaderBytes) {
    PREDUMP_ASSIGN_OR_RETURN(const size_t n,
                             ReadSome(reinterpret_cast<char*>(header_.data()) + header_filled_,
                                      kHeaderBytes - header_filled_));
    if (n == 0) return false;
    header_filled_ += n;
  }
  return true;
}

absl::Status ControlChannel::DecodeHeader() {
  FrameHeader header;
  ::memcpy(&header, header_.data(), sizeof header);
  const int type = le16toh(header.type);
  body_bytes_ = le32toh(header.length);
  if (type == proto::CONTROL_NONE || !proto::ControlType_IsValid(type)) {
    return Broken(absl::StrCat("it sent ", ControlTypeName(type), ", which is not known"));
  }
  if (header.flags != 0) {
    return Broken(absl::StrCat("its ", ControlTypeName(type), " has unknown flags"));
  }
  if (body_bytes_ > max_message_bytes_) {
    return Broken(absl::StrCat("its ", ControlTypeName(type), " of ", body_bytes_,
                               " bytes is longer than the ", max_message_bytes_, " allowed here"));
  }
  incoming_.type = static_cast<proto::ControlType>(type);
  incoming_.bytes.clear();
  return absl::OkStatus();
}

absl::StatusOr<size_t> ControlChannel::ReadSome(char* out, size_t size) {
  for (;;) {
    const ssize_t n = ::recv(socket_.get(), out, size, 0);
    if (n > 0) return static_cast<size_t>(n);
    if (n == 0) {
      if (header_filled_ == 0) return absl::UnavailableError(kPeerClosed);
      return Broken("it closed the connection in the middle of a message");
    }
    if (errno == EINTR) continue;
    if (errno == EAGAIN) return size_t{0};
    if (errno == ECONNRESET) return absl::UnavailableError(kPeerClosed);
    return base::ErrnoError(errno, "receive");
  }
}

absl::Status ControlChannel::Broken(absl::string_view why) {
  broken_ = absl::DataLossError(absl::StrCat("the other end broke the protocol: ", why));
  return broken_;
}

absl::Status ControlChannel::ParseInto(const ControlFrame& frame, proto::ControlType type,
                                       google::protobuf::MessageLite& message) {
  if (frame.type != type) {
    if (frame.type == proto::CONTROL_FAILED) {
      proto::Failed failed;
      if (ParseQuietly(frame.bytes, failed)) return StatusFromFailed(failed);
    }
    if (frame.type == proto::CONTROL_CANCEL) {
      proto::Cancel cancel;
      if (ParseQuietly(frame.bytes, cancel)) {
        return absl::CancelledError(absl::StrCat("the other end cancelled: ", cancel.reason()));
      }
    }
    return absl::DataLossError(absl::StrCat("the other end sent ", ControlTypeName(frame.type),
                                            " where ", ControlTypeName(type), " was expected"));
  }
  if (!ParseQuietly(frame.bytes, message)) {
    return absl::DataLossError(
        absl::StrCat("the other end's ", ControlTypeName(type), " cannot be read"));
  }
  return absl::OkStatus();
}

absl::StatusOr<proto::ServerHello> ClientHandshake(ControlChannel& channel,
                                                   const proto::HostFacts& facts,
                                                   Deadline deadline) {
  proto::ClientHello hello;
  hello.set_protocol_version(kProtocolVersion);
  hello.set_program_version(kProgramVersion);
  *hello.mutable_host() = facts;
  StampClocks(*hello.mutable_host());
  PREDUMP_RETURN_IF_ERROR(channel.Send(proto::CONTROL_CLIENT_HELLO, hello, deadline));
  PREDUMP_ASSIGN_OR_RETURN(proto::ServerHello answer, channel.Expect<proto::ServerHello>(
                                                          proto::CONTROL_SERVER_HELLO, deadline));
  if (answer.protocol_version() != kProtocolVersion) {
    return VersionMismatch(answer.protocol_version(), answer.program_version());
  }
  channel.set_max_message_bytes(kMaxControlBytes);
  return answer;
}

absl::StatusOr<proto::ClientHello> ServerHandshake(ControlChannel& channel,
                                                   const proto::HostFacts& facts,
                                                   Deadline deadline) {
  PREDUMP_ASSIGN_OR_RETURN(proto::ClientHello hello, channel.Expect<proto::ClientHello>(
                                                         proto::CONTROL_CLIENT_HELLO, deadline));
  // Answered whatever the version, so that the other end too can name both.
  proto::ServerHello answer;
  answer.set_protocol_version(kProtocolVersion);
  answer.set_program_version(kProgramVersion);
  *answer.mutable_host() = facts;
  StampClocks(*answer.mutable_host());
  PREDUMP_RETURN_IF_ERROR(channel.Send(proto::CONTROL_SERVER_HELLO, answer, deadline));
  if (hello.protocol_version() != kProtocolVersion) {
    return VersionMismatch(hello.protocol_version(), hello.program_version());
  }
  channel.set_max_message_bytes(kMaxControlBytes);
  return hello;
}

}  // namespace predump::transport
