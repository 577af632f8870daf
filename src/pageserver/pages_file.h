// The pages of one round, on their way into a pages file.
//
// Their bytes are appended in the order they come in. A page may come twice, be dropped again, or
// come after one with a higher address; CRIU's pagemaps have the file in ascending order without
// gaps, so PutInOrder() makes it so where it is not, which a source that sends in order never
// causes. Thread rule: one thread at a time.
#ifndef PREDUMP_PAGESERVER_PAGES_FILE_H_
#define PREDUMP_PAGESERVER_PAGES_FILE_H_

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/base/units.h"
#include "src/pagemap/extent.h"
#include "src/pageserver/payload_file.h"
#include "src/transport/data_format.h"

namespace predump::pageserver {

class PagesFile {
 public:
  // Makes `name` in `directory_fd`, which must stay open as long as this object lives.
  static absl::StatusOr<PagesFile> Create(int directory_fd, std::string name);

  // The bytes of these come next. Precondition: those announced before have come.
  void Announce(std::span<const transport::WireExtent> extents);
  // Takes of the announced bytes what has arrived on the non-blocking `socket`, at most a few MiB.
  // True once all have. Errors: Aborted the connection ended before; else from the file or the
  // socket, with the name (ResourceExhausted: the disk is full).
  absl::StatusOr<bool> TakeFrom(int socket);

  // These pages are no part of the round any more.
  void Forget(base::AddressRange range);

  // What came and was not forgotten.
  pagemap::ExtentSet pages() const;

  // Afterwards the file holds pages() in ascending order and nothing before, between or behind.
  absl::Status PutInOrder();

 private:
  struct Run {
    uint64_t end = 0;     // address
    uint64_t offset = 0;  // of its first byte in the file
  };

  explicit PagesFile(PayloadFile file) : file_(std::move(file)) {}

  PayloadFile file_;
  uint64_t awaited_ = 0;          // announced bytes that have not come
  std::map<uint64_t, Run> runs_;  // by address; disjoint
};

}  // namespace predump::pageserver

#endif  // PREDUMP_PAGESERVER_PAGES_FILE_H_
