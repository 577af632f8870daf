// /proc/PID/pagemap: the PAGEMAP_SCAN ioctl and plain reads.
//
// Thread rule: const calls may run in any thread; two scans that reset must not overlap in range.
#ifndef PREDUMP_KERNEL_PAGEMAP_SCAN_H_
#define PREDUMP_KERNEL_PAGEMAP_SCAN_H_

#include <cstdint>
#include <span>
#include <utility>

#include "absl/status/statusor.h"
#include "src/base/unique_fd.h"
#include "src/base/units.h"
#include "src/kernel/process.h"
#include "src/kernel/uapi_pagemap_scan.h"

namespace predump::kernel {

struct ScanRequest {
  base::AddressRange range;
  uint64_t flags = 0;  // kScanWpMatching, kScanCheckWpAsync
  uint64_t category_inverted = 0;
  uint64_t category_mask = 0;        // all of these (after inversion)
  uint64_t category_anyof_mask = 0;  // and any of these, where not 0
  uint64_t return_mask = 0;          // what PageRegion::categories tells; fewer is faster
  uint64_t max_pages = 0;            // 0: no limit
};

struct ScanResult {
  size_t count = 0;  // regions filled
  // Everything before it was walked (and reset). Equal to range.end() unless `out` or max_pages ran
  // out. Where the walk was refused: range.start(), for the kernel does not tell how far it came.
  base::RemoteAddress walk_end;
  // 0, or EPERM: some mapping in the range is not registered for asynchronous write protection. An
  // unknown part before that mapping was already reset (DESIGN 12.1) and what was found there is
  // lost, so that the whole range has to be sent again.
  int refused_errno = 0;
};

class PagemapFile {
 public:
  // TargetExited; else from open(2).
  static absl::StatusOr<PagemapFile> Open(const ProcessHandle& process);

  // One PAGEMAP_SCAN. Regions are ascending, disjoint, in bytes.
  // Errors: Unimplemented the kernel lacks the scan (before 6.7); TargetExited; else from errno.
  // Source: Documentation/admin-guide/mm/pagemap.rst.
  absl::StatusOr<ScanResult> Scan(const ScanRequest& request, std::span<PageRegion> out) const;

  // The 64-bit entries of the first out.size() pages of `range` (or all of it, if that is less), by
  // plain reads. Returns how many entries were filled; fewer where the address space ends.
  absl::StatusOr<size_t> ReadEntries(base::AddressRange range, std::span<uint64_t> out) const;

  int fd() const { return fd_.get(); }

 private:
  PagemapFile(base::UniqueFd fd, const ProcessHandle& process)
      : fd_(std::move(fd)), process_(&process) {}

  base::UniqueFd fd_;
  const ProcessHandle* process_;  // for telling an exit from an error
};

// Bits of a pagemap entry.
inline constexpr uint64_t kPagemapFrame = (1ull << 55) - 1;  // 0 without CAP_SYS_ADMIN
inline constexpr uint64_t kPagemapSoftDirty = 1ull << 55;
inline constexpr uint64_t kPagemapExclusive = 1ull << 56;
inline constexpr uint64_t kPagemapUffdWp = 1ull << 57;
inline constexpr uint64_t kPagemapFileOrShared = 1ull << 61;
inline constexpr uint64_t kPagemapSwapped = 1ull << 62;
inline constexpr uint64_t kPagemapPresent = 1ull << 63;

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_PAGEMAP_SCAN_H_
