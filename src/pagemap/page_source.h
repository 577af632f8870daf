// Takes the bytes of another process's pages and pushes them into a descriptor.
//
// Fetch first, then announce, then push: a page may vanish between scan and read, so nothing may be
// promised to the peer before the bytes are in hand. One cycle:
//   Fetch(wanted)  -> what was really got, at most max_pages() in one go
//   (the caller writes its header for exactly those extents)
//   PushTo(out_fd) -> moves exactly those bytes; for pipe sources a splice, no copy in user space.
//   Or, where something goes between them, Push(out_fd, bytes) for each part.
// Thread rule: one thread at a time.
#ifndef PREDUMP_PAGEMAP_PAGE_SOURCE_H_
#define PREDUMP_PAGEMAP_PAGE_SOURCE_H_

#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "src/base/units.h"
#include "src/pagemap/extent.h"

namespace predump::pagemap {

struct FetchResult {
  std::vector<Extent> fetched;   // bytes now held, in this order
  std::vector<Extent> vanished;  // unmapped meanwhile: not an error, the next scan sees to it
  base::PageCount consumed;  // pages of `wanted` dealt with (fetched + vanished), from its start
};

class PageSource {
 public:
  virtual ~PageSource() = default;

  virtual absl::string_view name() const = 0;

  // Most pages one Fetch takes bytes of; more may be found to have vanished.
  virtual base::PageCount max_pages() const = 0;

  // Takes pages from the start of `wanted`. Precondition: what was fetched before has been pushed.
  // Memory without PROT_READ is read all the same. Errors: TargetExited; otherwise from errno.
  virtual absl::StatusOr<FetchResult> Fetch(std::span<const Extent> wanted) = 0;

  // Bytes of the last Fetch that are not pushed yet.
  virtual base::ByteCount held() const = 0;

  // Pushes the next `bytes`, at most held(), to `out_fd` (socket, pipe or file), blocking as it
  // must. On an error some may be out: the stream is then unusable, and nothing is held any more.
  virtual absl::Status Push(int out_fd, base::ByteCount bytes) = 0;
  absl::Status PushTo(int out_fd) { return Push(out_fd, held()); }

  // Lets go of the target: nothing of the source remains in it. Idempotent.
  virtual absl::Status Finish() = 0;
};

}  // namespace predump::pagemap

#endif  // PREDUMP_PAGEMAP_PAGE_SOURCE_H_
