// The data connection, read without waiting: what comes for an image directory.
//
// The landing reads the same frames (transport/data_format.h) with blocking calls of its own; a
// session that stores them has a control connection to serve meanwhile. Example:
//   PREDUMP_ASSIGN_OR_RETURN(const auto frame, reader.Next());
//   if (!frame.has_value()) wait for reader.socket();
// Nothing a peer says sizes anything before it was checked. Thread rule: one thread at a time.
#ifndef PREDUMP_PAGESERVER_FRAME_READER_H_
#define PREDUMP_PAGESERVER_FRAME_READER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/base/unique_fd.h"
#include "src/transport/data_check.h"
#include "src/transport/data_format.h"

namespace predump::pageserver {

struct DataFrame {
  transport::DataKind kind = transport::DataKind::kRoundEnd;
  uint64_t round = 0;  // of kRoundEnd and kFinal
  // What it speaks of: the one range of kMap; the ranges of kUnmap and kDrop; the extents of
  // kPages, whose bytes are then the next on the socket.
  std::vector<transport::WireExtent> extents;
  uint64_t payload_bytes = 0;  // of kPages
};

class FrameReader {
 public:
  // Takes a connected stream socket whose preamble has been read, and makes it non-blocking.
  static absl::StatusOr<FrameReader> Create(base::UniqueFd socket);

  int socket() const { return socket_.get(); }

  // The next frame without its payload, if all of it has come. Precondition: the payload of the
  // frame before was taken from socket(). Errors: Unavailable the connection ended between two
  // frames; Aborted it ended within one; DataLoss no frame, with what is wrong and where.
  absl::StatusOr<std::optional<DataFrame>> Next();

  // Everything up to the end of `round` is safe. Waits for room for its few bytes.
  absl::Status Acknowledge(uint64_t round);
  // Tells the source that this end has failed, where it can still be told. `error_number` is what
  // it may show.
  void SendError(int error_number);

 private:
  explicit FrameReader(base::UniqueFd socket) : socket_(std::move(socket)) {}

  // True once `size` bytes are in `to`; what has come so far is counted in filled_.
  absl::StatusOr<bool> Fill(void* to, size_t size);
  absl::StatusOr<bool> FillTable();
  absl::Status Defect(transport::DataDefect defect, uint64_t address) const;

  enum class Part { kHeader, kTable, kPath };

  base::UniqueFd socket_;
  Part part_ = Part::kHeader;
  size_t filled_ = 0;  // of part_
  transport::DataHeader header_ = {};
  transport::MapRecord map_ = {};
  std::vector<transport::WireExtent> extents_;
  std::array<char, transport::kMaxPathBytes> path_ = {};
};

}  // namespace predump::pageserver

#endif  // PREDUMP_PAGESERVER_FRAME_READER_H_
