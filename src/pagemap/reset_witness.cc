#include "src/pagemap/reset_witness.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <span>

#include "src/base/errors.h"
#include "src/kernel/pagemap_scan.h"

namespace predump::pagemap {
namespace {

// Enough that some are left when the target discards or unmaps one.
constexpr size_t kWitnesses = 3;
// Pages looked at in one mapping before the next one is tried.
constexpr int kTries = 4;

// In memory and not protected by a userfaultfd: a write to such a page asks nobody.
bool MayBeWritten(uint64_t entry) {
  return (entry & kernel::kPagemapPresent) != 0 && (entry & kernel::kPagemapUffdWp) == 0;
}

ExtentSet SetOf(base::AddressRange range) {
  ExtentSet set;
  set.Add(range);
  return set;
}

}  // namespace

absl::StatusOr<ResetWitness> ResetWitness::Create(const kernel::ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(kernel::ProcessMemory memory,
                           kernel::ProcessMemory::Open(process, O_RDWR));
  return ResetWitness(std::move(memory));
}

absl::StatusOr<bool> ResetWitness::PlantIn(const ExtentSet& candidates,
                                           const PageScanner& scanner) {
  int tries = 0;
  for (const Extent& extent : candidates.extents()) {
    const base::RemoteAddress page = extent.start();
    if (++tries > kTries) break;
    PREDUMP_ASSIGN_OR_RETURN(const uint64_t entry, scanner.Entry(page));
    if (!MayBeWritten(entry)) continue;
    std::byte byte{};
    absl::Status status = memory_.ReadExactly(page, std::span(&byte, 1));
    if (status.ok()) status = memory_.Write(page, std::span(&byte, 1));
    if (base::IsTargetExited(status)) return status;
    if (!status.ok()) continue;
    PREDUMP_ASSIGN_OR_RETURN(const uint64_t after, scanner.Entry(page));
    if ((after & kernel::kPagemapSoftDirty) == 0) continue;
    pages_.push_back(page);
    return true;
  }
  return false;
}

absl::Status ResetWitness::Plant(const VmaList& vmas, const ExtentSet& data,
                                 const ExtentSet& unwritten, const PageScanner& scanner) {
  pages_.clear();
  // What the target cannot write to, what it seldom writes to, whatever there is.
  for (const int pass : {0, 1, 2}) {
    for (const Vma& vma : vmas.vmas()) {
      if (pages_.size() == kWitnesses) return absl::OkStatus();
      if (!vma.is_private_memory()) continue;
      const bool writable = (vma.prot & PROT_WRITE) != 0;
      if (writable != (pass > 0)) continue;
      const bool taken = std::any_of(pages_.begin(), pages_.end(),
                                     [&](auto page) { return vma.range.Contains(page); });
      if (taken) continue;
      const ExtentSet& from = pass == 1 ? unwritten : data;
      PREDUMP_RETURN_IF_ERROR(PlantIn(from.Intersection(SetOf(vma.range)), scanner).status());
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> ResetWitness::Intact(const PageScanner& scanner) const {
  bool any = false;
  for (const base::RemoteAddress page : pages_) {
    PREDUMP_ASSIGN_OR_RETURN(const uint64_t entry, scanner.Entry(page));
    // The target may have unmapped or discarded it.
    if ((entry & (kernel::kPagemapPresent | kernel::kPagemapSwapped)) == 0) continue;
    if ((entry & kernel::kPagemapSoftDirty) == 0) return false;
    any = true;
  }
  return any;
}

}  // namespace predump::pagemap
