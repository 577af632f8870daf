// Reads by the process into memory pinned before a reset, which no page-table mark ever shows: a
// device writes through the pin, not through the page tables (DESIGN 5, direct I/O in flight).
#ifndef PREDUMP_PAGEMAP_IN_FLIGHT_READS_H_
#define PREDUMP_PAGEMAP_IN_FLIGHT_READS_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/pagemap/extent.h"

namespace predump::pagemap {

class InFlightReads {
 public:
  virtual ~InFlightReads() = default;

  // Called right before a reset: from now on finished reads are remembered too.
  virtual absl::Status BeginReset() = 0;

  // Called right after the reset: the pages of every buffer of a read that overlapped any instant
  // since BeginReset(). Errors: TargetExited; any other error means that some read is not known.
  virtual absl::StatusOr<ExtentSet> Snapshot() = 0;
};

}  // namespace predump::pagemap

#endif  // PREDUMP_PAGEMAP_IN_FLIGHT_READS_H_
