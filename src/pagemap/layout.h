// How one memory layout becomes the next: what the landing has to map and unmap.
//
// The landing holds the pages received so far, so a mapping that stayed what it was must not be
// touched, however its edges moved. "What it was" means: anonymous memory; or the same file (device
// and inode), private or shared as before, with the same byte of the file at the same address.
//
//   before:  [ anon A ........ ][ file F @0 .... ]
//   after:   [ anon A .. ]      [ F @0 ][ anon B ]        (A shrunk, F's tail replaced)
//   ops:     unmap A's tail; map B
//
// Protections, names and hints are no part of this: they are set when the process is built.
// Thread rule: pure functions.
#ifndef PREDUMP_PAGEMAP_LAYOUT_H_
#define PREDUMP_PAGEMAP_LAYOUT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "src/base/units.h"
#include "src/pagemap/vma.h"

namespace predump::pagemap {

struct LayoutOp {
  enum class Kind {
    kMap,    // replaces whatever was at `range`; its contents are empty (or the file's) afterwards
    kUnmap,  // nothing is mapped at `range` afterwards
  };

  Kind kind = Kind::kUnmap;
  base::AddressRange range;
  // For kMap:
  uint32_t prot = 0;  // PROT_*, as it is in the end
  bool shared = false;
  std::string path;                // empty: anonymous
  uint64_t file_offset_bytes = 0;  // of range.start()
  // A shared mapping that may be, or become, writable: the file is opened for writing. Where flags
  // were not read, a mapping that is not writable now counts as never writable.
  bool writable_file = false;
  bool grows_down = false;
  bool huge_pages = false;     // MADV_HUGEPAGE
  bool no_huge_pages = false;  // MADV_NOHUGEPAGE
  bool no_reserve = false;     // MAP_NORESERVE

  friend bool operator==(const LayoutOp&, const LayoutOp&) = default;
};

// Whether `vma` exists in the landing: private memory and shared files. The vDSO, vvar and vsyscall
// are the target's own, unsupported mappings are refused before anything is sent.
bool IsInLayout(const Vma& vma);

// Whether an address that lay in `before` and lies in `after` keeps its contents.
bool KeepsContents(const Vma& before, const Vma& after);

// The steps from `before` (what the landing has; empty at first) to `after`: all unmaps by
// ascending address, then all maps by ascending address; ranges are disjoint within each group and
// across both.
std::vector<LayoutOp> DiffLayout(const VmaList& before, const VmaList& after);

}  // namespace predump::pagemap

#endif  // PREDUMP_PAGEMAP_LAYOUT_H_
