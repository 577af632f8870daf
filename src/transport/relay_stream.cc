#include "src/transport/relay_stream.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace predump::transport {

void RelayOutput::Append(const RelayHeader& header) {
  const auto bytes = EncodeRelayHeader(header);
  bytes_.append(bytes.data(), bytes.size());
}

ssize_t RelayOutput::AppendReceived(uint32_t stream, int socket, size_t most) {
  const size_t header_at = bytes_.size();
  bytes_.resize(header_at + kRelayHeaderBytes + most);
  ssize_t n;
  do {
    n = ::recv(socket, bytes_.data() + header_at + kRelayHeaderBytes, most, MSG_DONTWAIT);
  } while (n < 0 && errno == EINTR);
  const int error = errno;
  if (n <= 0) {
    bytes_.resize(header_at);
  } else {
    const auto header = EncodeRelayHeader({stream, RelayKind::kData, static_cast<uint32_t>(n)});
    ::memcpy(bytes_.data() + header_at, header.data(), header.size());
    bytes_.resize(header_at + kRelayHeaderBytes + static_cast<size_t>(n));
  }
  errno = error;
  return n;
}

void RelayOutput::Clear() {
  bytes_.clear();
  sent_ = 0;
}

void RelayOutput::RemovePrefix(size_t n) {
  sent_ += n;
  if (sent_ == bytes_.size()) {
    Clear();
  } else if (sent_ >= kEnough) {
    bytes_.erase(0, sent_);
    sent_ = 0;
  }
}

absl::Status RelayStream::TakeData(absl::string_view bytes, RelayOutput& out) {
  if (in_ended_) {
    return absl::DataLossError(absl::StrCat("data of stream ", id_, " came after its end"));
  }
  if (bytes.size() > window_ - unsettled_) {
    return absl::DataLossError(
        absl::StrCat("the other relay sends more of stream ", id_, " than it has credit for"));
  }
  unsettled_ += static_cast<uint32_t>(bytes.size());
  if (in_done_) return absl::OkStatus();  // it has been told, and will have read that by and by
  to_local_.append(bytes.data(), bytes.size());
  Deliver(out);
  return absl::OkStatus();
}

absl::Status RelayStream::TakeCredit(uint32_t bytes) {
  if (bytes > peer_window_ - credit_) {
    return absl::DataLossError(
        absl::StrCat("the other relay gives more credit for stream ", id_, " than it may"));
  }
  credit_ += bytes;
  return absl::OkStatus();
}

void RelayStream::TakeEnd() {
  in_ended_ = true;
  if (in_done_ || !to_local_.empty()) return;
  in_done_ = true;
  ::shutdown(local_.get(), SHUT_WR);
}

void RelayStream::TakeStop(RelayOutput& out) {
  if (out_done_) return;
  // Wakes whoever is blocked in writing to it, too.
  ::shutdown(local_.get(), SHUT_RD);
  EndOut(out);
}

pollfd RelayStream::Watch(bool room_for_output) const {
  pollfd watched = {local_.get(), 0, 0};
  if (!out_done_ && credit_ > 0 && room_for_output) watched.events |= POLLIN;
  if (!in_done_ && !to_local_.empty()) watched.events |= POLLOUT;
  if (hung_up_ && watched.events == 0) watched.fd = -1;
  return watched;
}

void RelayStream::Advance(short revents, RelayOutput& out) {
  if ((revents & (POLLHUP | POLLERR)) != 0) {
    hung_up_ = true;
    // What it wrote before it left is still to be read; what is written to it now, nobody reads.
    StopIn(out);
  }
  if (!in_done_ && (revents & POLLOUT) != 0) Deliver(out);
  if (!out_done_ && credit_ > 0 && (revents & (POLLIN | POLLHUP | POLLERR)) != 0) Receive(out);
}

void RelayStream::Deliver(RelayOutput& out) {
  while (delivered_ < to_local_.size()) {
    const ssize_t n = ::send(local_.get(), to_local_.data() + delivered_,
                             to_local_.size() - delivered_, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) break;
    if (n < 0) return StopIn(out);
    delivered_ += static_cast<size_t>(n);
  }
  GiveCredit(out);
  if (delivered_ == to_local_.size()) {
    to_local_.clear();
    delivered_ = 0;
    if (in_ended_) TakeEnd();
  } else if (delivered_ >= to_local_.size() / 2) {
    to_local_.erase(0, delivered_);
    delivered_ = 0;
  }
}

void RelayStream::GiveCredit(RelayOutput& out) {
  const auto waiting = static_cast<uint32_t>(to_local_.size() - delivered_);
  const uint32_t due = unsettled_ - waiting;
  // In large steps, so that credit is not most of what is sent.
  if (in_ended_ || due < window_ / 4) return;
  out.Append({id_, RelayKind::kCredit, due});
  unsettled_ -= due;
}

void RelayStream::Receive(RelayOutput& out) {
  const size_t most = std::min<size_t>(credit_, kMaxRelayDataBytes);
  const ssize_t n = out.AppendReceived(id_, local_.get(), most);
  if (n > 0) {
    credit_ -= static_cast<uint32_t>(n);
  } else if (n == 0 || errno != EAGAIN) {
    EndOut(out);
  }
}

void RelayStream::StopIn(RelayOutput& out) {
  if (in_done_) return;
  in_done_ = true;
  to_local_.clear();
  delivered_ = 0;
  if (!in_ended_) out.Append({id_, RelayKind::kStop, 0});
}

void RelayStream::EndOut(RelayOutput& out) {
  if (out_done_) return;
  out_done_ = true;
  out.Append({id_, RelayKind::kEnd, 0});
}

}  // namespace predump::transport
