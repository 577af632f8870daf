// Takes pages from a source and puts them where a layout has them.
#ifndef PREDUMP_CORE_PAGE_COPIER_H_
#define PREDUMP_CORE_PAGE_COPIER_H_

#include <span>
#include <vector>

#include "absl/status/status.h"
#include "src/base/units.h"
#include "src/core/frozen_state.h"
#include "src/core/layout.h"
#include "src/core/output.h"
#include "src/pagemap/extent.h"
#include "src/pagemap/page_source.h"

namespace predump::core {

class PageCopier {
 public:
  // All outlive the copier. A readable `cancel_fd` (-1: none) ends it.
  PageCopier(const Layout& layout, pagemap::PageSource& source, Output& output, int cancel_fd)
      : layout_(layout), source_(source), output_(output), cancel_fd_(cancel_fd) {}

  // Writes `copies` (ascending, inside what the layout covers), and `pages` from the source but for
  // what the copies hold, in the order of their addresses.
  // Errors: Cancelled; TargetExited; of source and output.
  absl::Status Copy(const pagemap::ExtentSet& pages, std::span<const MemoryCopy> copies);

  // Pages that were to be taken and were not there any more.
  const pagemap::ExtentSet& vanished() const { return vanished_; }
  base::PageCount written() const { return written_; }

 private:
  absl::Status CopyPages(const pagemap::ExtentSet& pages);
  // Where the bytes of `fetched` go; neighbours in the file are one placement.
  absl::Status Place(std::span<const pagemap::Extent> fetched);

  const Layout& layout_;
  pagemap::PageSource& source_;
  Output& output_;
  int cancel_fd_;
  std::vector<Placement> placements_;  // of one Fetch
  pagemap::ExtentSet vanished_;
  base::PageCount written_;
};

}  // namespace predump::core

#endif  // PREDUMP_CORE_PAGE_COPIER_H_
