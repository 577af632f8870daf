// The control connection: typed protobuf messages over a connected stream socket.
//
// A connection opens with kControlMagic from the source (the listener reads it to tell connections
// apart), then frames go both ways: {u16 type, u16 flags, u32 length}, little-endian, and `length`
// bytes of protobuf. Flags are zero in this version.
// Invariants: no call blocks past its deadline; nothing is read beyond the frame asked for, so
// poll(2) on fd() tells the truth; nothing a peer says sizes a buffer before it is bounded. A
// channel whose peer broke the protocol (DataLoss) is unusable from then on. Thread rule: one
// thread at a time.
#ifndef PREDUMP_TRANSPORT_CONTROL_CHANNEL_H_
#define PREDUMP_TRANSPORT_CONTROL_CHANNEL_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/message_lite.h"
#include "proto/session.pb.h"
#include "src/base/unique_fd.h"
#include "src/transport/deadline.h"

namespace predump::transport {

// Of the native protocol. Raised when an older program could misunderstand a newer one.
inline constexpr uint32_t kProtocolVersion = 1;
// For messages to people only; nothing is decided by it.
inline constexpr char kProgramVersion[] = "0.1.0";

// Before the hellos a peer is a stranger.
inline constexpr uint32_t kMaxHelloBytes = 64u << 10;
inline constexpr uint32_t kMaxControlBytes = 64u << 20;

struct ControlFrame {
  proto::ControlType type = proto::CONTROL_NONE;
  std::string bytes;  // the message, serialized
};

// "Prepare" for CONTROL_PREPARE; "message type 99" for one that is not known.
std::string ControlTypeName(int type);

// The status a Failed message stands for: FailedPrecondition with the reason and each blocker.
absl::Status StatusFromFailed(const proto::Failed& failed);

class ControlChannel {
 public:
  // Takes a connected stream socket and makes it non-blocking. Sends nothing.
  static absl::StatusOr<ControlChannel> Adopt(base::UniqueFd socket);

  // For poll(2): readable means a frame, or the end, has begun to arrive.
  int fd() const { return socket_.get(); }

  // Opens the conversation from the source's side.
  absl::Status SendMagic(Deadline deadline);

  // Sends one frame whole. Errors: Unavailable (the other end is gone), DeadlineExceeded (the
  // channel is then unusable, a part of the frame may be out), InvalidArgument (too large).
  absl::Status Send(proto::ControlType type, const google::protobuf::MessageLite& message,
                    Deadline deadline);

  // Waits for the next frame. Errors: DeadlineExceeded (nothing is lost, call again); Unavailable
  // (the other end closed the connection between two frames); DataLoss (it closed within one, or
  // sent what is no frame).
  absl::StatusOr<ControlFrame> Receive(Deadline deadline);

  // What has arrived already: a frame, or nothing yet. Never blocks. Errors: as Receive.
  absl::StatusOr<std::optional<ControlFrame>> TryReceive();

  // Receives, requires `type` and parses. A Failed or Cancel in its place becomes its status
  // (StatusFromFailed; Cancelled). Errors: as Receive; DataLoss for any other message.
  template <typename Message>
  absl::StatusOr<Message> Expect(proto::ControlType type, Deadline deadline) {
    absl::StatusOr<ControlFrame> frame = Receive(deadline);
    if (!frame.ok()) return frame.status();
    return Parse<Message>(*frame, type);
  }

  // The same for a frame in hand.
  template <typename Message>
  static absl::StatusOr<Message> Parse(const ControlFrame& frame, proto::ControlType type) {
    Message message;
    absl::Status status = ParseInto(frame, type, message);
    if (!status.ok()) return status;
    return message;
  }

  // The longest message taken from now on. A new channel takes kMaxHelloBytes.
  void set_max_message_bytes(uint32_t bytes) { max_message_bytes_ = bytes; }

 private:
  explicit ControlChannel(base::UniqueFd socket) : socket_(std::move(socket)) {}

  static absl::Status ParseInto(const ControlFrame& frame, proto::ControlType type,
                                google::protobuf::MessageLite& message);
  absl::Status SendAll(absl::string_view bytes, Deadline deadline);
  // Reads at most `size` bytes. Zero: nothing there. Errors: the end of the stream, as Receive
  // says.
  absl::StatusOr<size_t> ReadSome(char* out, size_t size);
  absl::StatusOr<bool> FillHeader();
  absl::Status DecodeHeader();
  absl::Status Broken(absl::string_view why);

  base::UniqueFd socket_;
  uint32_t max_message_bytes_ = kMaxHelloBytes;
  std::array<unsigned char, 8> header_ = {};
  size_t header_filled_ = 0;
  uint32_t body_bytes_ = 0;
  size_t body_filled_ = 0;
  ControlFrame incoming_;
  absl::Status broken_;  // not OK: the peer broke the protocol, and how
};

// Hellos, from each side. Both lift the channel's limit to kMaxControlBytes. The facts are sent
// with the clocks as they read now. Errors: FailedPrecondition, naming both versions, where they
// differ.
absl::StatusOr<proto::ServerHello> ClientHandshake(ControlChannel& channel,
                                                   const proto::HostFacts& facts,
                                                   Deadline deadline);
absl::StatusOr<proto::ClientHello> ServerHandshake(ControlChannel& channel,
                                                   const proto::HostFacts& facts,
                                                   Deadline deadline);

}  // namespace predump::transport

#endif  // PREDUMP_TRANSPORT_CONTROL_CHANNEL_H_
