#include "src/pageserver/frame_reader.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

#include <bit>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "src/base/errors.h"
#include "src/transport/deadline.h"
#include "src/transport/socket.h"

// Structures are read as they lie on the wire.
static_assert(std::endian::native == std::endian::little);

namespace predump::pageserver {
namespace {

using transport::DataDefect;
using transport::DataHeader;
using transport::DataKind;
using transport::WireExtent;

// A source waits for acknowledgements, so there is room for one at once, or never.
constexpr absl::Duration kAcknowledgeTimeout = absl::Seconds(30);

bool HasExtents(const DataHeader& header) {
  return static_cast<DataKind>(header.kind) != DataKind::kMap && transport::TableBytes(header) != 0;
}

}  // namespace

absl::StatusOr<FrameReader> FrameReader::Create(base::UniqueFd socket) {
  PREDUMP_RETURN_IF_ERROR(transport::SetBlocking(socket.get(), false));
  return FrameReader(std::move(socket));
}

absl::Status FrameReader::Defect(DataDefect defect, uint64_t address) const {
  if (defect == DataDefect::kNone) return absl::OkStatus();
  return absl::DataLossError(absl::StrFormat("bad data frame: %s (address %x)",
                                             transport::DescribeDefect(defect), address));
}

absl::StatusOr<bool> FrameReader::Fill(void* to, size_t size) {
  while (filled_ < size) {
    const ssize_t got = ::recv(socket_.get(), static_cast<char*>(to) + filled_, size - filled_, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return false;
    if (got < 0) return base::ErrnoError(errno, "receive on the data connection");
    if (got == 0) {
      if (part_ == Part::kHeader && filled_ == 0) {
        return absl::UnavailableError("the source closed the data connection");
      }
      return absl::AbortedError("the data connection ended within a frame");
    }
    filled_ += static_cast<size_t>(got);
  }
  filled_ = 0;
  return true;
}

absl::StatusOr<bool> FrameReader::FillTable() {
  if (HasExtents(header_)) {
    PREDUMP_ASSIGN_OR_RETURN(const bool whole,
                             Fill(extents_.data(), extents_.size() * sizeof(WireExtent)));
    if (!whole) return false;
    uint64_t where = 0;
    const DataDefect defect = transport::CheckExtents(header_, extents_.data(), &where);
    PREDUMP_RETURN_IF_ERROR(Defect(defect, where));
  } else if (transport::TableBytes(header_) != 0) {
    PREDUMP_ASSIGN_OR_RETURN(const bool whole, Fill(&map_, sizeof map_));
    if (!whole) return false;
    PREDUMP_RETURN_IF_ERROR(Defect(transport::CheckMapRecord(map_), map_.start));
    extents_ = {{map_.start, map_.bytes}};
  }
  return true;
}

absl::StatusOr<std::optional<DataFrame>> FrameReader::Next() {
  if (part_ == Part::kHeader) {
    PREDUMP_ASSIGN_OR_RETURN(const bool whole, Fill(&header_, sizeof header_));
    if (!whole) return std::nullopt;
    PREDUMP_RETURN_IF_ERROR(Defect(transport::CheckHeader(header_), 0));
    extents_.assign(HasExtents(header_) ? header_.count : 0, WireExtent{});
    map_ = {};
    part_ = Part::kTable;
  }
  if (part_ == Part::kTable) {
    PREDUMP_ASSIGN_OR_RETURN(const bool whole, FillTable());
    if (!whole) return std::nullopt;
    part_ = Part::kPath;
  }
  if (map_.path_bytes != 0) {
    PREDUMP_ASSIGN_OR_RETURN(const bool whole, Fill(path_.data(), map_.path_bytes));
    if (!whole) return std::nullopt;
    PREDUMP_RETURN_IF_ERROR(
        Defect(transport::CheckPath(path_.data(), map_.path_bytes), map_.start));
  }
  part_ = Part::kHeader;
  DataFrame frame;
  frame.kind = static_cast<DataKind>(header_.kind);
  frame.extents = std::move(extents_);
  if (frame.kind == DataKind::kPages) frame.payload_bytes = header_.arg;
  if (frame.kind == DataKind::kRoundEnd || frame.kind == DataKind::kFinal) {
    frame.round = header_.arg;
  }
  return frame;
}

absl::Status FrameReader::Acknowledge(uint64_t round) {
  DataHeader header = {};
  header.kind = static_cast<uint32_t>(DataKind::kAcknowledge);
  header.arg = round;
  header.round = round;
  const auto deadline = transport::Deadline::After(kAcknowledgeTimeout);
  size_t done = 0;
  while (done < sizeof header) {
    const ssize_t sent = ::send(socket_.get(), reinterpret_cast<const char*>(&header) + done,
                                sizeof header - done, MSG_NOSIGNAL);
    if (sent >= 0) {
      done += static_cast<size_t>(sent);
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return base::ErrnoError(errno, "acknowledge a round");
    PREDUMP_ASSIGN_OR_RETURN(const transport::WaitResult waited,
                             transport::WaitFor(socket_.get(), POLLOUT, deadline));
    if (waited == transport::WaitResult::kDeadline) {
      return absl::DeadlineExceededError("the source takes no acknowledgement");
    }
  }
  return absl::OkStatus();
}

void FrameReader::SendError(int error_number) {
  DataHeader header = {};
  header.kind = static_cast<uint32_t>(DataKind::kLandingError);
  header.count = static_cast<uint32_t>(error_number);
  // Where there is no room for it the end of the connection has to do.
  [[maybe_unused]] const ssize_t sent =
      ::send(socket_.get(), &header, sizeof header, MSG_NOSIGNAL | MSG_DONTWAIT);
}

}  // namespace predump::pageserver
