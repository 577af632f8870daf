// The client of a page server of CRIU's: one connection, the memory of one task, one image
// directory there (page_server_protocol.h).
//
//   client.Open(deadline)                          the server starts pagemap-<id>.img
//   client.Hole(range)                             its pages are in the parent directory
//   client.PagesHeader(range)                      announces the bytes the caller pushes into fd()
//   client.Close(deadline)                         all is stored
//
// Ranges are given in ascending order: the server looks holes up in one pass, and stores entries as
// they come. It says nothing until it is asked, so that what goes wrong there shows as a connection
// that ends. After any error the stream is unusable. Thread rule: one thread at a time.
#ifndef PREDUMP_TRANSPORT_PAGE_SERVER_CLIENT_H_
#define PREDUMP_TRANSPORT_PAGE_SERVER_CLIENT_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "src/base/unique_fd.h"
#include "src/base/units.h"
#include "src/transport/deadline.h"
#include "src/transport/page_server_protocol.h"

namespace predump::transport {

class PageServerClient {
 public:
  static constexpr absl::Duration kStallTimeout = absl::Seconds(30);

  // Takes a connected stream socket, for the memory of task `pid` (of its innermost pid namespace).
  PageServerClient(base::UniqueFd socket, page_server::HeaderSize header, uint32_t pid)
      : socket_(std::move(socket)), header_(header), object_(page_server::TaskObject(pid)) {}

  // Comes before all else. Errors: Unavailable where the server ends the connection,
  // DeadlineExceeded where it does not answer: both are what a server does that expects the other
  // header size.
  absl::Status Open(Deadline deadline);

  // For PageSource::Push.
  int fd() const { return socket_.get(); }
  // Whether the server has a parent directory with this task's memory, so that holes may be sent.
  bool has_parent() const { return has_parent_; }

  absl::Status Hole(base::AddressRange range);
  absl::Status PagesHeader(base::AddressRange range);

  // Says that this was all, and waits until it is stored and the server has ended the connection.
  // Errors: FailedPrecondition where the server says that it could not; DataLoss for nonsense;
  // Unavailable, DeadlineExceeded as above.
  absl::Status Close(Deadline deadline);

  // Of a failed push: what it means where the server has ended the connection.
  absl::Status Explain(const absl::Status& push_error) const;

  // Everything sent, payload announced included.
  base::ByteCount bytes_sent() const { return bytes_sent_; }

 private:
  absl::Status Send(const page_server::Message& message, bool more);
  absl::Status AddRange(uint32_t flags, base::AddressRange range);
  // Exactly out.size() bytes.
  absl::Status Receive(std::span<std::byte> out, Deadline deadline);

  base::UniqueFd socket_;
  page_server::HeaderSize header_;
  uint64_t object_ = 0;
  bool has_parent_ = false;
  base::ByteCount bytes_sent_;
};

}  // namespace predump::transport

#endif  // PREDUMP_TRANSPORT_PAGE_SERVER_CLIENT_H_
