// A control channel whose peer sends anything: it must end in a frame, an error or "not yet", never
// block, and never take more memory than it has bounded.
#include <sys/socket.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "src/base/unique_fd.h"
#include "src/transport/control_channel.h"

namespace predump::transport {
namespace {

// Fits into a socket buffer, so that one thread can play both ends.
constexpr size_t kMaxInput = 100'000;

void ReadAll(const uint8_t* data, size_t size, uint32_t max_message_bytes) {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) std::abort();
  base::UniqueFd peer(fds[1]);
  absl::StatusOr<ControlChannel> channel = ControlChannel::Adopt(base::UniqueFd(fds[0]));
  if (!channel.ok()) std::abort();
  channel->set_max_message_bytes(max_message_bytes);
  const size_t sent = std::min(size, kMaxInput);
  if (sent > 0 && ::send(peer.get(), data, sent, 0) != static_cast<ssize_t>(sent)) std::abort();
  ::shutdown(peer.get(), SHUT_WR);
  for (;;) {
    absl::StatusOr<ControlFrame> frame = channel->Receive(Deadline::After(absl::ZeroDuration()));
    if (!frame.ok()) {
      // The stream has an end, which is seen without waiting.
      if (absl::IsDeadlineExceeded(frame.status())) std::abort();
      return;
    }
    if (frame->bytes.size() > max_message_bytes) std::abort();
    ControlChannel::Parse<proto::Failed>(*frame, proto::CONTROL_FAILED).status().IgnoreError();
  }
}

}  // namespace
}  // namespace predump::transport

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  predump::transport::ReadAll(data, size, predump::transport::kMaxHelloBytes);
  predump::transport::ReadAll(data, size, predump::transport::kMaxControlBytes);
  return 0;
}
