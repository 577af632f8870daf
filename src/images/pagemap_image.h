// pagemap-*.img: which pages an image directory holds, and which of them lie in its parent.
//
//   pagemap-<pid>.img          memory of a task; addresses are virtual
//   pagemap-shmem-<id>.img     a shared memory object; addresses are offsets in it
//   pages-<pages_id>.img       the bytes of all kPagePresent entries in order, no gaps, no header
//
// Thread rule: free functions.
#ifndef PREDUMP_IMAGES_PAGEMAP_IMAGE_H_
#define PREDUMP_IMAGES_PAGEMAP_IMAGE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace predump::images {

// pagemap_entry.flags, and the flags of the page-server protocol.
enum PageFlag : uint32_t {
  kPageParent = 1,   // the data is in the parent directory
  kPageLazy = 2,     // may be restored on demand
  kPagePresent = 4,  // the data is in the pages file
};

struct PagemapEntry {
  uint64_t start = 0;  // page-aligned
  uint64_t pages = 0;  // > 0
  uint32_t flags = 0;  // PageFlag

  uint64_t end() const { return start + pages * 4096; }
  friend bool operator==(const PagemapEntry&, const PagemapEntry&) = default;
};

// Of what the pages are.
struct PagesOf {
  enum class Kind { kTask, kSharedMemory };
  Kind kind = Kind::kTask;
  uint64_t id = 0;  // pid in its innermost namespace; id of the object

  std::string PagemapName() const;
  friend bool operator==(const PagesOf&, const PagesOf&) = default;
};

std::string PagesName(uint32_t pages_id);

struct Pagemap {
  uint32_t pages_id = 0;
  std::vector<PagemapEntry> entries;  // ascending, disjoint
};

// One entry by itself. DataLoss where it is empty, unaligned, outside what the kind can address,
// has flags that are none of the three, or is not in exactly one of the pages file and the parent
// (a lazy dump that was never served is in neither; readers disagree on an entry in both).
absl::Status CheckPagemapEntry(const PagemapEntry& entry, PagesOf::Kind kind);

// NotFound where there is none. DataLoss, with the file's name and the entry, for entries that
// CheckPagemapEntry refuses, that are not ascending or overlap, or for a pages file that is missing
// or shorter than its entries. Reads both places of the page count and both forms of "in the
// parent"; flags that are absent mean present.
absl::StatusOr<Pagemap> ReadPagemap(int directory_fd, const PagesOf& of);

// Writes what every version reads: both page counts, flags always. Errors: as above for an entry
// that ReadPagemap would refuse; from the file system. Nothing is synced.
absl::Status WritePagemap(int directory_fd, const PagesOf& of, const Pagemap& pagemap);

// The first page that `child` says is in the parent and that no entry of `parent` has. Linear;
// both as ReadPagemap gives them.
std::optional<uint64_t> FirstNotInParent(const Pagemap& child, const Pagemap& parent);

}  // namespace predump::images

#endif  // PREDUMP_IMAGES_PAGEMAP_IMAGE_H_
