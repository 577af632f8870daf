// Sends what changed: layout, holes, pages, in the order the landing must apply them.
//
// Thread rule: one thread at a time.
#ifndef PREDUMP_PREDUMP_PAGE_SENDER_H_
#define PREDUMP_PREDUMP_PAGE_SENDER_H_

#include <functional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/base/units.h"
#include "src/pagemap/dirty_tracker.h"
#include "src/pagemap/page_source.h"
#include "src/pagemap/vma.h"
#include "src/transport/bandwidth_limiter.h"
#include "src/transport/data_writer.h"

namespace predump {

class PageSender {
 public:
  // Told how many pages of the current set are out; a few times a second at most is up to the
  // caller.
  using Progress = std::function<void(base::PageCount sent)>;

  PageSender(transport::DataWriter& data, pagemap::PageSource& source,
             transport::BandwidthLimiter& limiter)
      : data_(data), source_(source), limiter_(limiter) {}

  // Brings the landing's layout from that of the last call to `vmas`.
  absl::Status SendLayout(const pagemap::VmaList& vmas);

  // Sends drops, then pages. Returns the pages really sent: those that vanished meanwhile are not.
  absl::StatusOr<base::PageCount> SendDirty(const pagemap::DirtySet& dirty,
                                            const Progress& progress);

 private:
  base::PageCount PagesAtOnce() const;

  transport::DataWriter& data_;
  pagemap::PageSource& source_;
  transport::BandwidthLimiter& limiter_;
  pagemap::VmaList sent_layout_;
};

}  // namespace predump

#endif  // PREDUMP_PREDUMP_PAGE_SENDER_H_
