// A connection that has not yet said what it is.
//
// Reads the first bytes of a connection and not one more: what follows belongs to the session (or,
// on a data connection, to the landing). Thread rule: one thread at a time.
#ifndef PREDUMP_PAGESERVER_HALF_OPEN_H_
#define PREDUMP_PAGESERVER_HALF_OPEN_H_

#include <array>
#include <cstddef>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "src/base/unique_fd.h"
#include "src/transport/data_format.h"
#include "src/transport/deadline.h"

namespace predump::pageserver {

class HalfOpen {
 public:
  enum class Kind {
    kUndecided,  // more must come
    kControl,
    kData,  // token() is complete
    kCriu,  // first_bytes() are a CRIU client's
  };

  // `socket` is non-blocking.
  HalfOpen(base::UniqueFd socket, std::string peer, transport::Deadline deadline)
      : socket_(std::move(socket)), peer_(std::move(peer)), deadline_(deadline) {}

  // Takes what has arrived. Errors: Unavailable the peer left; DataLoss it speaks something else;
  // DeadlineExceeded it took too long.
  absl::StatusOr<Kind> Advance();

  int fd() const { return socket_.get(); }
  const std::string& peer() const { return peer_; }
  transport::Deadline deadline() const { return deadline_; }
  // 16 bytes, of a data connection.
  std::string token() const;
  // What has been read of a CRIU client's first message.
  std::string first_bytes() const { return std::string(preamble_.data(), kMagicBytes); }
  base::UniqueFd TakeSocket() { return std::move(socket_); }

 private:
  static constexpr size_t kMagicBytes = 8;

  // True once `size` bytes are there.
  absl::StatusOr<bool> FillTo(size_t size);

  base::UniqueFd socket_;
  std::string peer_;
  transport::Deadline deadline_;
  std::array<char, kMagicBytes + transport::kTokenBytes> preamble_ = {};
  size_t filled_ = 0;
};

}  // namespace predump::pageserver

#endif  // PREDUMP_PAGESERVER_HALF_OPEN_H_
