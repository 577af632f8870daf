// What BPF tells, in the terms of this folder. A library of its own (predump_pagemap_bpf), so that
// trackers and sources link without BPF.
#ifndef PREDUMP_PAGEMAP_BPF_ADAPTERS_H_
#define PREDUMP_PAGEMAP_BPF_ADAPTERS_H_

#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/kernel/bpf/reads_in_flight.h"
#include "src/kernel/bpf/records.h"
#include "src/pagemap/extent.h"
#include "src/pagemap/in_flight_reads.h"
#include "src/pagemap/vma.h"

namespace predump::pagemap {

// Reads in flight as seen by the trace points.
class BpfInFlightReads final : public InFlightReads {
 public:
  explicit BpfInFlightReads(kernel::ReadsInFlight reads) : reads_(std::move(reads)) {}

  absl::Status BeginReset() override { return reads_.BeginReset(); }
  absl::StatusOr<ExtentSet> Snapshot() override;

 private:
  kernel::ReadsInFlight reads_;
};

// OverlayFlags from a capture of the frozen target.
void OverlayFlags(VmaList& vmas, std::span<const kernel::VmaRecord> records);

}  // namespace predump::pagemap

#endif  // PREDUMP_PAGEMAP_BPF_ADAPTERS_H_
