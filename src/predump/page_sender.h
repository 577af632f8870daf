// Carries the pages of one round from a page source to a sink.
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
#include "src/predump/page_sink.h"
#include "src/transport/bandwidth_limiter.h"

namespace predump {

class PageSender {
 public:
  // Told how many pages of the current round are out, and how many are to come; a few times a
  // second at most is up to the caller.
  using Progress = std::function<void(base::PageCount sent, base::PageCount left)>;

  PageSender(PageSink& sink, pagemap::PageSource& source, transport::BandwidthLimiter& limiter)
      : sink_(sink), source_(source), limiter_(limiter) {}

  // Begins a round of the sink and sends its pages. Returns those really sent: what vanished
  // meanwhile is not.
  absl::StatusOr<base::PageCount> Send(const pagemap::VmaList& vmas, const pagemap::DirtySet& dirty,
                                       const Progress& progress);

 private:
  base::PageCount PagesAtOnce() const;

  PageSink& sink_;
  pagemap::PageSource& source_;
  transport::BandwidthLimiter& limiter_;
};

}  // namespace predump

#endif  // PREDUMP_PREDUMP_PAGE_SENDER_H_
