#include "src/transport/relay_frame.h"

#include <string.h>

#include <algorithm>
#include <bit>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

// Structures are written as they lie in memory.
static_assert(std::endian::native == std::endian::little);

namespace predump::transport {
namespace {

template <typename T>
void Put(T value, size_t at, char* to) {
  ::memcpy(to + at, &value, sizeof value);
}

template <typename T>
T Get(const char* from, size_t at) {
  T value;
  ::memcpy(&value, from + at, sizeof value);
  return value;
}

absl::Status CheckHeader(const RelayHeader& header, uint16_t reserved) {
  const auto kind = static_cast<uint16_t>(header.kind);
  if (kind < static_cast<uint16_t>(RelayKind::kOpen) ||
      kind > static_cast<uint16_t>(RelayKind::kAlive)) {
    return absl::DataLossError(absl::StrCat("the other relay sent a frame of unknown kind ", kind));
  }
  bool length_fits = header.length == 0;
  if (header.kind == RelayKind::kData) {
    length_fits = header.length > 0 && header.length <= kMaxRelayDataBytes;
  } else if (header.kind == RelayKind::kCredit) {
    length_fits = header.length > 0 && header.length <= kMaxRelayWindow;
  }
  if (!length_fits || reserved != 0) {
    return absl::DataLossError(absl::StrCat("the other relay sent a frame of kind ", kind,
                                            " with a length of ", header.length));
  }
  if ((header.stream == 0) != (header.kind == RelayKind::kAlive)) {
    return absl::DataLossError(
        absl::StrCat("the other relay sent a frame of kind ", kind, " for stream ", header.stream));
  }
  return absl::OkStatus();
}

}  // namespace

void AppendRelayHello(uint32_t window, std::string& out) {
  char hello[kRelayHelloBytes];
  Put(kRelayMagic, 0, hello);
  Put(kRelayVersion, 8, hello);
  Put(window, 12, hello);
  out.append(hello, sizeof hello);
}

std::array<char, kRelayHeaderBytes> EncodeRelayHeader(const RelayHeader& header) {
  std::array<char, kRelayHeaderBytes> bytes = {};
  Put(header.stream, 0, bytes.data());
  Put(static_cast<uint16_t>(header.kind), 4, bytes.data());
  Put(header.length, 8, bytes.data());
  return bytes;
}

absl::Status RelayParser::Feed(absl::string_view bytes, RelayFrames& frames) {
  while (!bytes.empty()) {
    if (payload_left_ > 0) {
      const absl::string_view piece = bytes.substr(0, payload_left_);
      payload_left_ -= static_cast<uint32_t>(piece.size());
      bytes.remove_prefix(piece.size());
      if (absl::Status taken = frames.OnData(stream_, piece); !taken.ok()) return taken;
      continue;
    }
    const size_t wanted = has_hello_ ? kRelayHeaderBytes : kRelayHelloBytes;
    const size_t n = std::min(wanted - filled_, bytes.size());
    ::memcpy(buffer_.data() + filled_, bytes.data(), n);
    filled_ += n;
    bytes.remove_prefix(n);
    // A stranger is known by its first byte, and may never send a sixteenth.
    if (!has_hello_ &&
        ::memcmp(buffer_.data(), &kRelayMagic, std::min(filled_, sizeof kRelayMagic)) != 0) {
      return absl::DataLossError(
          absl::StrCat("it is no predump that answers, but says \"",
                       absl::CHexEscape(absl::string_view(buffer_.data(), filled_)), "...\""));
    }
    if (filled_ < wanted) continue;
    filled_ = 0;
    if (absl::Status taken = has_hello_ ? TakeHeader(frames) : TakeHello(frames); !taken.ok()) {
      return taken;
    }
  }
  return absl::OkStatus();
}

absl::Status RelayParser::TakeHello(RelayFrames& frames) {
  const auto version = Get<uint32_t>(buffer_.data(), 8);
  if (version != kRelayVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the predump there speaks version ", version, " of the protocol between relays, this one ",
        kRelayVersion, "; install the same version at both ends"));
  }
  const auto window = Get<uint32_t>(buffer_.data(), 12);
  if (window < kMinRelayWindow || window > kMaxRelayWindow) {
    return absl::DataLossError(absl::StrCat("the other relay offers a window of ", window));
  }
  has_hello_ = true;
  return frames.OnHello(window);
}

absl::Status RelayParser::TakeHeader(RelayFrames& frames) {
  RelayHeader header;
  header.stream = Get<uint32_t>(buffer_.data(), 0);
  header.kind = static_cast<RelayKind>(Get<uint16_t>(buffer_.data(), 4));
  header.length = Get<uint32_t>(buffer_.data(), 8);
  if (absl::Status checked = CheckHeader(header, Get<uint16_t>(buffer_.data(), 6)); !checked.ok()) {
    return checked;
  }
  if (header.kind != RelayKind::kData) return frames.OnFrame(header);
  stream_ = header.stream;
  payload_left_ = header.length;
  return absl::OkStatus();
}

}  // namespace predump::transport
