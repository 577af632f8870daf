// Notices that somebody else reset the soft-dirty marks of the target.
//
// The marks are one bit a page for all who use them: another tool's reset would hide what was
// written before it. So after each reset of ours a few pages are written with the very byte they
// hold: they are marked from then on, and a witness without a mark tells of a foreign reset. Pages
// that the target can't write to itself serve best, since its own write would mark them again.
// Thread rule: one thread at a time; the target is frozen.
#ifndef PREDUMP_PAGEMAP_RESET_WITNESS_H_
#define PREDUMP_PAGEMAP_RESET_WITNESS_H_

#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/base/units.h"
#include "src/kernel/process.h"
#include "src/kernel/process_memory.h"
#include "src/pagemap/extent.h"
#include "src/pagemap/page_scanner.h"
#include "src/pagemap/vma.h"

namespace predump::pagemap {

class ResetWitness {
 public:
  // `process` outlives the object. Errors: TargetExited; else from open(2).
  static absl::StatusOr<ResetWitness> Create(const kernel::ProcessHandle& process);

  // Call right after a reset. `data`: pages that hold something; `unwritten`: those of them that
  // were not marked before it. A page that can't be written only makes it see less.
  // Errors: TargetExited.
  absl::Status Plant(const VmaList& vmas, const ExtentSet& data, const ExtentSet& unwritten,
                     const PageScanner& scanner);

  // Call after everything else was looked at, and before the next reset of ours: whether the marks
  // are still those since Plant(). False also where no witness is left to ask.
  absl::StatusOr<bool> Intact(const PageScanner& scanner) const;

  bool planted() const { return !pages_.empty(); }

 private:
  explicit ResetWitness(kernel::ProcessMemory memory) : memory_(std::move(memory)) {}

  // Adds the first page of `candidates` that can be written; true where there was one.
  absl::StatusOr<bool> PlantIn(const ExtentSet& candidates, const PageScanner& scanner);

  kernel::ProcessMemory memory_;
  std::vector<base::RemoteAddress> pages_;
};

}  // namespace predump::pagemap

#endif  // PREDUMP_PAGEMAP_RESET_WITNESS_H_
