#include "src/predump/cancellation.h"

#include <sys/socket.h>

#include <algorithm>

namespace predump {

bool Cancellation::Request(const std::string& reason) {
  absl::MutexLock lock(&mutex_);
  if (committed_) return false;
  if (!requested_) {
    requested_ = true;
    reason_ = reason;
  }
  for (const int socket : sockets_) ::shutdown(socket, SHUT_RDWR);
  return true;
}

void Cancellation::Watch(int socket) {
  absl::MutexLock lock(&mutex_);
  sockets_.push_back(socket);
  if (requested_) ::shutdown(socket, SHUT_RDWR);
}

void Cancellation::Unwatch(int socket) {
  absl::MutexLock lock(&mutex_);
  sockets_.erase(std::remove(sockets_.begin(), sockets_.end(), socket), sockets_.end());
}

bool Cancellation::EnterCommit() {
  absl::MutexLock lock(&mutex_);
  if (requested_) return false;
  committed_ = true;
  return true;
}

bool Cancellation::requested() const {
  absl::MutexLock lock(&mutex_);
  return requested_;
}

bool Cancellation::AwaitRequest(absl::Duration timeout) const {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&requested_), timeout);
}

std::string Cancellation::reason() const {
  absl::MutexLock lock(&mutex_);
  return reason_;
}

}  // namespace predump
