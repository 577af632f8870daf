// One stream of a relay: a local socket, and what is on its way from and to it.
//
// The sender of each direction holds credit for what it may still send, so that a stream whose
// reader stalls fills its own buffer, at most a window, and keeps nothing else from passing.
// Thread rule: one thread.
#ifndef PREDUMP_TRANSPORT_RELAY_STREAM_H_
#define PREDUMP_TRANSPORT_RELAY_STREAM_H_

#include <poll.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "src/base/unique_fd.h"
#include "src/transport/relay_frame.h"

namespace predump::transport {

// What waits to go out to the other relay.
class RelayOutput {
 public:
  // Beyond this no more is read of local sockets.
  static constexpr size_t kEnough = 256u << 10;

  void AppendHello(uint32_t window) { AppendRelayHello(window, bytes_); }
  void Append(const RelayHeader& header);
  // Appends what recv(2) gives at once, at most `most` bytes, as a kData frame. As recv: the bytes,
  // 0 at the end, -1 with errno.
  ssize_t AppendReceived(uint32_t stream, int socket, size_t most);
  void Clear();

  absl::string_view pending() const { return absl::string_view(bytes_).substr(sent_); }
  void RemovePrefix(size_t n);

 private:
  std::string bytes_;
  size_t sent_ = 0;
};

class RelayStream {
 public:
  // `peer_window`: what the other relay takes before it gives credit; `window`: what we do.
  RelayStream(uint32_t id, base::UniqueFd local, uint32_t peer_window, uint32_t window)
      : id_(id),
        local_(std::move(local)),
        peer_window_(peer_window),
        credit_(peer_window),
        window_(window) {}

  // From the other relay. Errors: DataLoss, it sends more than it has credit for, or gives more
  // than it may.
  absl::Status TakeData(absl::string_view bytes, RelayOutput& out);
  absl::Status TakeCredit(uint32_t bytes);
  void TakeEnd();
  void TakeStop(RelayOutput& out);

  // For poll(2). That its other end was closed is always worth knowing, but once only.
  pollfd Watch(bool room_for_output) const;
  // Does what `revents` says can be done, and gives credit.
  void Advance(short revents, RelayOutput& out);

  uint32_t id() const { return id_; }
  bool has_undelivered() const { return !in_done_ && !to_local_.empty(); }
  bool out_done() const { return out_done_; }
  bool finished() const { return in_done_ && out_done_; }

 private:
  void Deliver(RelayOutput& out);
  void Receive(RelayOutput& out);
  // No more is taken from the other relay.
  void StopIn(RelayOutput& out);
  // No more is sent to it.
  void EndOut(RelayOutput& out);
  void GiveCredit(RelayOutput& out);

  uint32_t id_;
  base::UniqueFd local_;
  // To the other relay.
  uint32_t peer_window_;
  uint32_t credit_;
  bool out_done_ = false;
  // From it.
  uint32_t window_;
  std::string to_local_;
  size_t delivered_ = 0;    // of to_local_
  uint32_t unsettled_ = 0;  // received and no credit given for since
  bool in_ended_ = false;   // nothing comes after to_local_
  bool in_done_ = false;
  bool hung_up_ = false;  // the local socket was closed at its other end
};

}  // namespace predump::transport

#endif  // PREDUMP_TRANSPORT_RELAY_STREAM_H_
