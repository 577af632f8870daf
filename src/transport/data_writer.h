// The source's end of a data connection: data_format.h, written.
//
// Frames without payload are gathered and leave together with the next payload or round end. The
// payload of a pages frame is pushed by the caller, straight into fd():
//   writer.PagesHeader(extents);            // queued with MSG_MORE
//   if (!source.PushTo(writer.fd()).ok())   // exactly the bytes of `extents`
//     return writer.Explain(status);
// The socket blocks, for the benefit of splice(2). A landing that fails says so and is then killed,
// which resets the connection and so wakes a blocked writer; one that neither reads nor dies is
// found by `stall_timeout`. After any error the stream is unusable. Thread rule: one thread at a
// time.
#ifndef PREDUMP_TRANSPORT_DATA_WRITER_H_
#define PREDUMP_TRANSPORT_DATA_WRITER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "src/base/unique_fd.h"
#include "src/base/units.h"
#include "src/transport/data_format.h"
#include "src/transport/deadline.h"

namespace predump::transport {

class DataWriter {
 public:
  static constexpr absl::Duration kStallTimeout = absl::Seconds(30);

  // Takes a connected stream socket and sends the preamble. `token` is 16 bytes (BeginReply).
  // `stall_timeout` bounds how long one write may make no progress at all.
  static absl::StatusOr<DataWriter> Start(base::UniqueFd socket, absl::string_view token,
                                          absl::Duration stall_timeout = kStallTimeout);

  // For PageSource::PushTo, and for poll(2): readable means an acknowledgement or an error waits.
  int fd() const { return socket_.get(); }

  // `record.path_bytes` is set from `path`; empty for an anonymous mapping. InvalidArgument for a
  // record no landing would take (data_check.h).
  absl::Status Map(MapRecord record, absl::string_view path);

  // Any number of extents, ascending and disjoint; split over as many frames as it takes.
  absl::Status Unmap(std::span<const WireExtent> extents);
  absl::Status Drop(std::span<const WireExtent> extents);

  // Announces the bytes the caller pushes next. At most kMaxExtentsPerFrame extents (neighbours
  // that touch count as one) and kMaxPayloadBytes; InvalidArgument otherwise, with nothing written.
  // A Fetch of at most 1,024 pages always fits.
  absl::Status PagesHeader(std::span<const WireExtent> extents);

  // Marks the end of a round and sends all that was gathered.
  absl::Status EndRound(uint64_t round);
  // The end of the last round: the landing stops itself once it has all.
  absl::Status Final(uint64_t round);

  // Waits until the landing has everything of `round` in memory. Errors: DeadlineExceeded; the
  // landing's own error; Unavailable where it is gone; DataLoss for nonsense.
  absl::Status ReadAcknowledge(uint64_t round, Deadline deadline);

  // Looks, without waiting, whether the landing has reported an error. OK: it has not.
  absl::Status CheckPeer();

  // The landing's own account of why a push failed, where it gave one; otherwise `push_error`.
  absl::Status Explain(const absl::Status& push_error);

  // Everything handed to this writer, payload announced included.
  base::ByteCount bytes_sent() const { return bytes_sent_; }

 private:
  explicit DataWriter(base::UniqueFd socket) : socket_(std::move(socket)) {}

  absl::Status Ranges(DataKind kind, std::span<const WireExtent> extents);
  absl::Status EndMark(DataKind kind, uint64_t round);
  void Gather(const void* bytes, size_t size);
  absl::Status FlushIfLarge();
  absl::Status Flush(bool more);
  // Reads replies that have arrived. OK: none of them was an error and the stream goes on.
  absl::Status ReadReplies();
  absl::Status TakeReply();

  base::UniqueFd socket_;
  std::string gathered_;
  base::ByteCount bytes_sent_;
  uint64_t round_ = 0;
  std::array<unsigned char, sizeof(DataHeader)> reply_ = {};
  size_t reply_filled_ = 0;
  std::deque<uint64_t> acknowledged_;  // rounds, not yet asked for
};

}  // namespace predump::transport

#endif  // PREDUMP_TRANSPORT_DATA_WRITER_H_
