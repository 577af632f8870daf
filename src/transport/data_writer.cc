#include "src/transport/data_writer.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <bit>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "src/base/errors.h"
#include "src/transport/data_check.h"
#include "src/transport/socket.h"

// Structures are written as they lie in memory.
static_assert(std::endian::native == std::endian::little);

namespace predump::transport {
namespace {

constexpr size_t kFlushBytes = 64u << 10;
constexpr char kLandingGone[] = "the target closed the data connection";

absl::Status LandingFailed(const DataHeader& reply) {
  return base::ErrnoError(static_cast<int>(reply.count),
                          absl::StrFormat("the target failed at address %x", reply.arg));
}

absl::Status DefectError(DataDefect defect) {
  return absl::InvalidArgumentError(
      absl::StrCat("no landing would take this frame: it has ", DescribeDefect(defect)));
}

// Runs that touch become one: the table has room for so many and no more.
std::vector<WireExtent> Merge(std::span<const WireExtent> extents) {
  std::vector<WireExtent> merged;
  merged.reserve(extents.size());
  for (const WireExtent& extent : extents) {
    if (!merged.empty() && merged.back().start + merged.back().bytes == extent.start) {
      merged.back().bytes += extent.bytes;
    } else {
      merged.push_back(extent);
    }
  }
  return merged;
}

}  // namespace

absl::StatusOr<DataWriter> DataWriter::Start(base::UniqueFd socket, absl::string_view token,
                                             absl::Duration stall_timeout) {
  if (token.size() != kTokenBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a data token has ", kTokenBytes, " bytes, not ", token.size()));
  }
  PREDUMP_RETURN_IF_ERROR(SetBlocking(socket.get(), true));
  PREDUMP_RETURN_IF_ERROR(SetSendTimeout(socket.get(), stall_timeout));
  DataWriter writer(std::move(socket));
  writer.Gather(&kDataMagic, sizeof kDataMagic);
  writer.Gather(token.data(), token.size());
  PREDUMP_RETURN_IF_ERROR(writer.Flush(/*more=*/false));
  return writer;
}

void DataWriter::Gather(const void* bytes, size_t size) {
  gathered_.append(static_cast<const char*>(bytes), size);
  bytes_sent_ += base::ByteCount(size);
}

absl::Status DataWriter::Map(MapRecord record, absl::string_view path) {
  record.path_bytes = static_cast<uint32_t>(std::min<size_t>(path.size(), kMaxPathBytes + 1));
  DataDefect defect = CheckMapRecord(record);
  if (defect == DataDefect::kNone && !path.empty()) {
    defect = CheckPath(path.data(), record.path_bytes);
  }
  if (defect != DataDefect::kNone) return DefectError(defect);
  const DataHeader header = {static_cast<uint32_t>(DataKind::kMap), 1, 0, round_, 0};
  Gather(&header, sizeof header);
  Gather(&record, sizeof record);
  Gather(path.data(), path.size());
  return FlushIfLarge();
}

absl::Status DataWriter::Unmap(std::span<const WireExtent> extents) {
  return Ranges(DataKind::kUnmap, extents);
}

absl::Status DataWriter::Drop(std::span<const WireExtent> extents) {
  return Ranges(DataKind::kDrop, extents);
}

absl::Status DataWriter::Ranges(DataKind kind, std::span<const WireExtent> extents) {
  while (!extents.empty()) {
    const size_t count = std::min<size_t>(extents.size(), kMaxExtentsPerFrame);
    const DataHeader header = {static_cast<uint32_t>(kind), static_cast<uint32_t>(count), 0, round_,
                               0};
    const DataDefect defect = CheckExtents(header, extents.data());
    if (defect != DataDefect::kNone) return DefectError(defect);
    Gather(&header, sizeof header);
    Gather(extents.data(), count * sizeof(WireExtent));
    PREDUMP_RETURN_IF_ERROR(FlushIfLarge());
    extents = extents.subspan(count);
  }
  return absl::OkStatus();
}

absl::Status DataWriter::PagesHeader(std::span<const WireExtent> extents) {
  const std::vector<WireExtent> merged = Merge(extents);
  if (merged.size() > kMaxExtentsPerFrame) return DefectError(DataDefect::kBadCount);
  uint64_t payload_bytes = 0;
  for (const WireExtent& extent : merged) {
    if (extent.bytes > kMaxPayloadBytes - payload_bytes) {
      return DefectError(DataDefect::kBadPayloadSize);
    }
    payload_bytes += extent.bytes;
  }
  const DataHeader header = {static_cast<uint32_t>(DataKind::kPages),
                             static_cast<uint32_t>(merged.size()), payload_bytes, round_, 0};
  DataDefect defect = CheckHeader(header);
  if (defect == DataDefect::kNone) defect = CheckExtents(header, merged.data());
  if (defect != DataDefect::kNone) return DefectError(defect);
  // Cheap next to the payload, and an error noticed here saves sending it.
  PREDUMP_RETURN_IF_ERROR(CheckPeer());
  Gather(&header, sizeof header);
  Gather(merged.data(), merged.size() * sizeof(WireExtent));
  PREDUMP_RETURN_IF_ERROR(Flush(/*more=*/true));
  bytes_sent_ += base::ByteCount(payload_bytes);
  return absl::OkStatus();
}

absl::Status DataWriter::EndRound(uint64_t round) { return EndMark(DataKind::kRoundEnd, round); }

absl::Status DataWriter::Final(uint64_t round) { return EndMark(DataKind::kFinal, round); }

absl::Status DataWriter::EndMark(DataKind kind, uint64_t round) {
  const DataHeader header = {static_cast<uint32_t>(kind), 0, round, round, 0};
  Gather(&header, sizeof header);
  round_ = round + 1;
  return Flush(/*more=*/false);
}

absl::Status DataWriter::FlushIfLarge() {
  return gathered_.size() >= kFlushBytes ? Flush(/*more=*/true) : absl::OkStatus();
}

absl::Status DataWriter::Flush(bool more) {
  absl::string_view left = gathered_;
  const int flags = MSG_NOSIGNAL | (more ? MSG_MORE : 0);
  while (!left.empty()) {
    const ssize_t n = ::send(socket_.get(), left.data(), left.size(), flags);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      return absl::DeadlineExceededError("the target has stopped reading");
    }
    if (n < 0) return Explain(base::ErrnoError(errno, "send on the data connection"));
    if (n == 0) return absl::DataLossError("send on the data connection made no progress");
    left.remove_prefix(static_cast<size_t>(n));
  }
  gathered_.clear();
  return absl::OkStatus();
}

absl::Status DataWriter::ReadAcknowledge(uint64_t round, Deadline deadline) {
  for (;;) {
    // What was acknowledged before the landing failed or left is acknowledged all the same.
    const absl::Status replies = ReadReplies();
    if (!acknowledged_.empty()) {
      const uint64_t got = acknowledged_.front();
      if (got != round) {
        return absl::DataLossError(absl::StrCat("the target acknowledged round ", got,
                                                " where round ", round, " was due"));
      }
      acknowledged_.pop_front();
      return absl::OkStatus();
    }
    PREDUMP_RETURN_IF_ERROR(replies);
    PREDUMP_ASSIGN_OR_RETURN(const WaitResult result, WaitFor(socket_.get(), POLLIN, deadline));
    if (result == WaitResult::kDeadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("the target did not acknowledge round ", round, " in time"));
    }
  }
}

absl::Status DataWriter::CheckPeer() { return ReadReplies(); }

absl::Status DataWriter::Explain(const absl::Status& push_error) {
  const absl::Status told = ReadReplies();
  // A stream that merely ended says less than the push itself did.
  return told.ok() || absl::IsUnavailable(told) ? push_error : told;
}

absl::Status DataWriter::ReadReplies() {
  for (;;) {
    const ssize_t n = ::recv(socket_.get(), reply_.data() + reply_filled_,
                             reply_.size() - reply_filled_, MSG_DONTWAIT);
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN) return absl::OkStatus();
      if (errno == ECONNRESET || errno == EPIPE) return absl::UnavailableError(kLandingGone);
      return base::ErrnoError(errno, "receive on the data connection");
    }
    if (n == 0) return absl::UnavailableError(kLandingGone);
    reply_filled_ += static_cast<size_t>(n);
    if (reply_filled_ < reply_.size()) continue;
    reply_filled_ = 0;
    PREDUMP_RETURN_IF_ERROR(TakeReply());
  }
}

absl::Status DataWriter::TakeReply() {
  DataHeader reply;
  ::memcpy(&reply, reply_.data(), sizeof reply);
  switch (static_cast<DataKind>(reply.kind)) {
    case DataKind::kAcknowledge:
      // The rounds in flight are few; a landing that acknowledges without end is out of its mind.
      if (acknowledged_.size() >= 64) break;
      acknowledged_.push_back(reply.arg);
      return absl::OkStatus();
    case DataKind::kLandingError:
      return LandingFailed(reply);
    default:
      break;
  }
  return absl::DataLossError(absl::StrCat("the target answered with frame kind ", reply.kind));
}

}  // namespace predump::transport
