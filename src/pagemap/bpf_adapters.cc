#include "src/pagemap/bpf_adapters.h"

#include <limits>
#include <vector>

#include "src/base/errors.h"
#include "src/kernel/bpf/vma_capture.h"

namespace predump::pagemap {

absl::StatusOr<ExtentSet> BpfInFlightReads::Snapshot() {
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<kernel::InFlightRead> reads, reads_.Snapshot());
  const uint64_t page = base::PageSize();
  std::vector<Extent> pages;
  for (const kernel::InFlightRead& read : reads) {
    for (const base::AddressRange& buffer : read.buffers) {
      if (buffer.empty()) continue;
      // The application's own numbers: an end near the top must not wrap when rounded up.
      const uint64_t start = buffer.start().value() / page * page;
      const uint64_t last = (buffer.end().value() - 1) / page * page;
      if (last > std::numeric_limits<uint64_t>::max() - page) continue;
      pages.push_back(base::AddressRange::FromOrdered(start, last + page));
    }
  }
  return ExtentSet::FromUnsorted(std::move(pages));
}

void OverlayFlags(VmaList& vmas, std::span<const kernel::VmaRecord> records) {
  std::vector<kernel::VmaFlags> flags;
  flags.reserve(records.size());
  for (const kernel::VmaRecord& record : records) flags.push_back(kernel::FlagsOf(record));
  OverlayFlags(vmas, std::span<const kernel::VmaFlags>(flags));
}

}  // namespace predump::pagemap
