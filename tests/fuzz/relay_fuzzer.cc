// A relay whose other relay sends anything: it must end, whatever came, and take no more of it than
// it has bounded; and cutting the same bytes elsewhere must change nothing.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/base/unique_fd.h"
#include "src/transport/descriptor_passing.h"
#include "src/transport/relay.h"
#include "src/transport/relay_frame.h"

namespace predump::transport {
namespace {

// Fits into a socket buffer, so that one thread can play all parts.
constexpr size_t kMaxInput = 100'000;

class Heard final : public RelayFrames {
 public:
  absl::Status OnHello(uint32_t window) override {
    if (window < kMinRelayWindow || window > kMaxRelayWindow) std::abort();
    return absl::OkStatus();
  }
  absl::Status OnFrame(const RelayHeader& header) override {
    if (header.length > kMaxRelayWindow) std::abort();
    absl::StrAppend(&all, header.stream, " ", static_cast<int>(header.kind), " ", header.length,
                    ";");
    return absl::OkStatus();
  }
  absl::Status OnData(uint32_t stream, absl::string_view bytes) override {
    if (stream == 0) std::abort();
    payload.append(bytes.data(), bytes.size());
    return absl::OkStatus();
  }
  std::string all;
  std::string payload;
};

void Parse(absl::string_view bytes, size_t step, Heard& heard) {
  RelayParser parser;
  for (size_t at = 0; at < bytes.size(); at += step) {
    if (!parser.Feed(bytes.substr(at, step), heard).ok()) return;
  }
}

void Relay(absl::string_view bytes, RelaySide side) {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) std::abort();
  base::UniqueFd peer(pair[1]);
  auto channel = MakeDescriptorChannel();
  if (!channel.ok()) std::abort();
  RelayEnds ends;
  ends.in = base::UniqueFd(pair[0]);
  ends.out = base::UniqueFd(::dup(pair[0]));
  ends.channel = std::move(channel->second);
  if (side == RelaySide::kAccepting && !SendReady(channel->first.get()).ok()) std::abort();
  const size_t sent = std::min(bytes.size(), kMaxInput);
  if (sent > 0 && ::send(peer.get(), bytes.data(), sent, 0) != static_cast<ssize_t>(sent)) {
    std::abort();
  }
  ::shutdown(peer.get(), SHUT_WR);
  RunRelay(side, std::move(ends)).IgnoreError();
}

}  // namespace
}  // namespace predump::transport

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using predump::transport::RelaySide;
  if (size == 0) return 0;
  const absl::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  predump::transport::Heard whole;
  predump::transport::Heard cut;
  predump::transport::Parse(bytes, bytes.size() + 1, whole);
  predump::transport::Parse(bytes, size_t{1} + data[0], cut);
  if (whole.all != cut.all || whole.payload != cut.payload) std::abort();
  predump::transport::Relay(bytes, RelaySide::kAccepting);
  predump::transport::Relay(bytes, RelaySide::kOpening);
  return 0;
}
