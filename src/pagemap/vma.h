// The mappings of a process, classified.
//
// A VmaList is ascending and disjoint. Kinds decide how memory moves: private memory page by page,
// files by being opened again at the target, the vDSO by the target having the same one.
#ifndef PREDUMP_PAGEMAP_VMA_H_
#define PREDUMP_PAGEMAP_VMA_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/base/units.h"
#include "src/kernel/process.h"
#include "src/kernel/procfs.h"

namespace predump::pagemap {

enum class VmaKind {
  kAnonymousPrivate,  // heap, stack and brk included
  kFilePrivate,
  kFileShared,
  kAnonymousShared,  // not produced while such memory cannot move: it is kUnsupported
  kVdso,
  kVvar,  // [vvar] and [vvar_vclock]
  kVsyscall,
  kUnsupported,  // device, pfn, hugetlb, shadow stack ...: `why_unsupported` says
};

struct Vma {
  base::AddressRange range;
  uint32_t prot = 0;  // PROT_*
  VmaKind kind = VmaKind::kUnsupported;
  uint64_t file_offset_bytes = 0;
  uint64_t device = 0;  // makedev(3)
  uint64_t inode = 0;
  std::string
      path;  // as in maps, without " (deleted)": a file, "[heap]", "[stack]", "[anon:x]" or ""
  bool deleted = false;
  bool grows_down = false;
  kernel::VmaFlags flags;       // from smaps or BPF; no bit set when not read
  std::string why_unsupported;  // one clause without the range, for kUnsupported only

  bool is_private_memory() const {
    return kind == VmaKind::kAnonymousPrivate || kind == VmaKind::kFilePrivate;
  }
  bool flags_known() const { return flags.bits != 0; }
  // Same-page merging (KSM) may rewrite its page-table entries; false when flags were not read.
  bool mergeable() const { return flags.Has(kernel::VmFlag::kMergeable); }
};

// What one line of maps stands for. Pure. `flags` with no bit set means "not known".
Vma ClassifyMapping(const kernel::MapsEntry& entry, const kernel::VmaFlags& flags);

class VmaList {
 public:
  VmaList() = default;
  explicit VmaList(std::vector<Vma> vmas) : vmas_(std::move(vmas)) {}

  // Reads and classifies /proc/PID/maps. With `with_flags`, VmFlags and guard regions too (smaps
  // and a scan: both walk page tables, so not while the target is frozen; OverlayFlags sets flags
  // there). Errors: TargetExited.
  static absl::StatusOr<VmaList> Read(const kernel::ProcessHandle& process, bool with_flags);

  const std::vector<Vma>& vmas() const { return vmas_; }
  std::vector<Vma>& mutable_vmas() { return vmas_; }
  // The mapping that holds `address`, or null.
  const Vma* Find(base::RemoteAddress address) const;

 private:
  std::vector<Vma> vmas_;
};

// Sets the flags of every mapping from `flags` (ascending, from any source) and classifies again
// what they show to be unsupported. A mapping that spans several entries gets all their bits; one
// that meets none keeps what it had.
void OverlayFlags(VmaList& vmas, std::span<const kernel::VmaFlags> flags);

// Refuses mappings with guard regions, and tells which. The marker that MADV_GUARD_INSTALL plants
// has no VmFlag before Linux 6.19, only a page category (6.15): a walk through all page tables. On
// older kernels the scan refuses the category, and nothing tells. Errors: TargetExited.
absl::StatusOr<std::vector<base::AddressRange>> RefuseGuardRegions(
    const kernel::ProcessHandle& process, VmaList& vmas);
// Refuses what overlaps `range`, which was found guarded.
void RefuseGuarded(VmaList& vmas, const base::AddressRange& range);

}  // namespace predump::pagemap

#endif  // PREDUMP_PAGEMAP_VMA_H_
