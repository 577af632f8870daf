// How several streams share one pair of pipes: the bytes that two relays exchange (relay.h).
//
// Each side opens with a hello {u64 magic, u32 version, u32 window}, little-endian, then sends
// frames {u32 stream, u16 kind, u16 reserved, u32 length}; of the frames only kData has a payload,
// of `length` bytes. `window` is how many bytes of each stream its sender takes beyond what it has
// given credit for. Numbers are published: never change or reuse one.
#ifndef PREDUMP_TRANSPORT_RELAY_FRAME_H_
#define PREDUMP_TRANSPORT_RELAY_FRAME_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace predump::transport {

inline constexpr uint64_t kRelayMagic = 0x59414c4552504450;  // "PDPRELAY"
inline constexpr uint32_t kRelayVersion = 1;
inline constexpr uint32_t kMinRelayWindow = 64u << 10;
inline constexpr uint32_t kMaxRelayWindow = 64u << 20;
inline constexpr uint32_t kMaxRelayDataBytes = 128u << 10;

enum class RelayKind : uint16_t {
  kOpen = 1,    // a new stream; numbers grow, and only the opening side sends it
  kData = 2,    // bytes of a stream
  kCredit = 3,  // `length` more bytes of the stream may be sent
  kEnd = 4,     // the sender sends no more bytes of the stream
  kStop = 5,    // the sender takes no more bytes of the stream
  kAlive = 6,   // of no stream: nothing else was to be said for a while
};

struct RelayHeader {
  uint32_t stream = 0;
  RelayKind kind = RelayKind::kAlive;
  uint32_t length = 0;
};

inline constexpr size_t kRelayHelloBytes = 16;
inline constexpr size_t kRelayHeaderBytes = 12;

void AppendRelayHello(uint32_t window, std::string& out);
std::array<char, kRelayHeaderBytes> EncodeRelayHeader(const RelayHeader& header);

// What is told of the bytes that come, in their order. An error ends the parsing.
class RelayFrames {
 public:
  virtual ~RelayFrames() = default;
  virtual absl::Status OnHello(uint32_t window) = 0;
  // Any kind but kData.
  virtual absl::Status OnFrame(const RelayHeader& header) = 0;
  // A part of the payload of a kData frame.
  virtual absl::Status OnData(uint32_t stream, absl::string_view bytes) = 0;
};

// Cuts the bytes of a peer into frames, as they come in. Bounded: it holds no payload.
class RelayParser {
 public:
  // Errors: DataLoss (no relay sends this), FailedPrecondition (a relay of another version), or
  // what `frames` returned; the parser is then of no more use.
  absl::Status Feed(absl::string_view bytes, RelayFrames& frames);

  bool has_hello() const { return has_hello_; }
  // Whether the stream may end here: not in the middle of a frame.
  bool at_boundary() const { return has_hello_ && filled_ == 0 && payload_left_ == 0; }

 private:
  absl::Status TakeHello(RelayFrames& frames);
  absl::Status TakeHeader(RelayFrames& frames);

  std::array<char, kRelayHelloBytes> buffer_ = {};
  size_t filled_ = 0;
  bool has_hello_ = false;
  uint32_t stream_ = 0;  // of the payload that is coming
  uint32_t payload_left_ = 0;
};

}  // namespace predump::transport

#endif  // PREDUMP_TRANSPORT_RELAY_FRAME_H_
