// The memory that an image directory and its parents hold together.
//
// Thread rule: an object belongs to one thread at a time.
#ifndef PREDUMP_IMAGES_PAGE_CHAIN_H_
#define PREDUMP_IMAGES_PAGE_CHAIN_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/base/unique_fd.h"
#include "src/images/pagemap_image.h"

namespace predump::images {

// A run of pages that lie one behind the other in one pages file.
struct StoredRun {
  uint64_t start = 0;   // address (or offset in the object)
  uint64_t pages = 0;   // > 0
  int fd = -1;          // of the pages file, borrowed from the chain
  uint64_t offset = 0;  // in bytes, of the first page in that file

  uint64_t end() const { return start + pages * 4096; }
};

class PageChain {
 public:
  // Follows `parent` as far as entries ask for it, to at most kMaxDepth directories. Errors: as
  // ReadPagemap; DataLoss for a `parent` that is missing, dangling, circular, or does not hold a
  // page that a child expects there, with the address. Holds a descriptor for each directory that
  // has pages of it, and raises the soft limit of open files where it needs more.
  static absl::StatusOr<PageChain> Open(int directory_fd, const PagesOf& of);
  static constexpr int kMaxDepth = 4096;

  // Ascending and disjoint. What is in none of them is zero, or what its file says.
  const std::vector<StoredRun>& runs() const { return runs_; }

  // The run with `address`; null where there is none.
  const StoredRun* Find(uint64_t address) const;

  // Reads whole pages, all of which must be in runs. NotFound: some are not. DataLoss: the file is
  // shorter than it was.
  absl::Status Read(uint64_t address, std::span<std::byte> to) const;

 private:
  PageChain() = default;
  static absl::StatusOr<PageChain> Follow(int directory_fd, const PagesOf& of);

  std::vector<base::UniqueFd> files_;
  std::vector<StoredRun> runs_;
};

}  // namespace predump::images

#endif  // PREDUMP_IMAGES_PAGE_CHAIN_H_
