// Ownership of one file descriptor.
//
// Thread rule: an object belongs to one thread at a time; distinct objects are independent.
#ifndef PREDUMP_BASE_UNIQUE_FD_H_
#define PREDUMP_BASE_UNIQUE_FD_H_

#include <utility>

#include "absl/status/status.h"

namespace predump::base {

// Owns a descriptor and closes it. A raw `int` elsewhere is always a borrow.
class UniqueFd {
 public:
  UniqueFd() noexcept = default;
  explicit UniqueFd(int fd) noexcept : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept;
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  ~UniqueFd();

  int get() const noexcept { return fd_; }
  bool valid() const noexcept { return fd_ >= 0; }

  // Gives the descriptor away; the object is empty afterwards.
  [[nodiscard]] int Release() noexcept { return std::exchange(fd_, -1); }

  // Closes now and reports what close(2) said. Empty objects close successfully. EINTR counts as
  // closed, as Linux does.
  absl::Status Close();

 private:
  int fd_ = -1;
};

}  // namespace predump::base

#endif  // PREDUMP_BASE_UNIQUE_FD_H_
