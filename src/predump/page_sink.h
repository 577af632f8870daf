// Takes the memory of a process, round by round, to where it is kept.
//
//   sink.AwaitReady()                                                         then scan
//   wanted = sink.BeginRound(vmas, dirty)
//   source.Fetch(part of wanted), sink.Pages(what was fetched, source), ...   in ascending order
//   sink.EndRound(number, deadline)                                           all of it is safe
//
// The last round of a handover ends by other means, with the process's state (handover.h).
// Thread rule: the migrating thread.
#ifndef PREDUMP_PREDUMP_PAGE_SINK_H_
#define PREDUMP_PREDUMP_PAGE_SINK_H_

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "src/base/units.h"
#include "src/pagemap/dirty_tracker.h"
#include "src/pagemap/extent.h"
#include "src/pagemap/page_source.h"
#include "src/pagemap/vma.h"
#include "src/transport/deadline.h"

namespace predump {

class PageSink {
 public:
  virtual ~PageSink() = default;

  // Waits until another round can be taken, so that it brings what is written until then. Not
  // before the last round of a handover.
  virtual absl::Status AwaitReady() = 0;

  // Brings the sink from what it held after the last round to layout `vmas` without `dirty.drop`.
  // Returns the pages to send: `dirty.pages`, and those the sink has lost.
  virtual absl::StatusOr<pagemap::ExtentSet> BeginRound(const pagemap::VmaList& vmas,
                                                        const pagemap::DirtySet& dirty) = 0;

  // Takes all that `source` holds; `extents` says what that is, in order.
  virtual absl::Status Pages(std::span<const pagemap::Extent> extents,
                             pagemap::PageSource& source) = 0;

  virtual absl::Status EndRound(uint64_t number, transport::Deadline deadline) = 0;

  // The connection that pages go out on. From AwaitReady to EndRound.
  virtual int fd() const = 0;
  // Of all rounds so far, headers included.
  virtual base::ByteCount bytes_sent() const = 0;
  // Of the link; zero where it is not known.
  virtual absl::Duration round_trip() const = 0;
};

}  // namespace predump

#endif  // PREDUMP_PREDUMP_PAGE_SINK_H_
