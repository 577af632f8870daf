// Hashes of private pages at both ends of a move: what --verify stands on, because nothing else
// sees a page that was missed in an earlier round.
//
// The hash is XXH3 with 64 bits over one page, seed 0. Both processes must not run meanwhile.
// Thread rule: free functions.
#ifndef PREDUMP_PAGEMAP_PAGE_HASH_H_
#define PREDUMP_PAGEMAP_PAGE_HASH_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "src/base/units.h"
#include "src/kernel/process.h"
#include "src/pagemap/extent.h"
#include "src/pagemap/vma.h"

namespace predump::pagemap {

// Of one page.
uint64_t HashPage(std::span<const std::byte> bytes);

// Pages of private memory that hold data: present or swapped out, neither the zero page nor an
// unmodified page of a mapped file. Errors: TargetExited; Unimplemented before Linux 6.7.
absl::StatusOr<ExtentSet> DataPages(const kernel::ProcessHandle& process, const VmaList& vmas);

// One hash per page, in the order of `extents`. Bytes inside `masked` (per-thread areas that the
// kernel writes, such as rseq) are taken as zeros. Errors: TargetExited; OutOfRange a page that
// cannot be read.
absl::StatusOr<std::vector<uint64_t>> HashPages(const kernel::ProcessHandle& process,
                                                std::span<const Extent> extents,
                                                std::span<const base::AddressRange> masked);

// What the source holds: hashes[i] belongs to the i-th page of `pages`.
struct ExpectedPages {
  ExtentSet pages;
  std::vector<uint64_t> hashes;
};

struct PageDifferences {
  ExtentSet differing;   // another hash, or not readable
  ExtentSet unexpected;  // holds data that the source does not list: anonymous memory that is not
                         // zero, private copies that differ from the file
  bool none() const { return differing.empty() && unexpected.empty(); }
};

// Compares all private memory of `process`, whose layout is `vmas`, with `expected`. `masked` as
// in HashPages, for both. Errors: TargetExited; InvalidArgument pages and hashes do not match in
// number; else from errno.
absl::StatusOr<PageDifferences> ComparePages(const kernel::ProcessHandle& process,
                                             const VmaList& vmas, const ExpectedPages& expected,
                                             std::span<const base::AddressRange> masked);

}  // namespace predump::pagemap

#endif  // PREDUMP_PAGEMAP_PAGE_HASH_H_
