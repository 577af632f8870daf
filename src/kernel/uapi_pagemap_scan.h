// Mirror of the PAGEMAP_SCAN part of include/uapi/linux/fs.h (Linux 6.7), which Debian 12's headers
// do not have. Names differ from the kernel's macros so that newer headers can be included beside
// it.
#ifndef PREDUMP_KERNEL_UAPI_PAGEMAP_SCAN_H_
#define PREDUMP_KERNEL_UAPI_PAGEMAP_SCAN_H_

#include <sys/ioctl.h>

#include <cstddef>
#include <cstdint>

namespace predump::kernel {

// PAGE_IS_*: categories of a page. "Written" is the absence of the uffd write-protect mark.
inline constexpr uint64_t kPageIsWpAllowed = 1u << 0;
inline constexpr uint64_t kPageIsWritten = 1u << 1;
inline constexpr uint64_t kPageIsFile = 1u << 2;
inline constexpr uint64_t kPageIsPresent = 1u << 3;
inline constexpr uint64_t kPageIsSwapped = 1u << 4;
inline constexpr uint64_t kPageIsPfnZero = 1u << 5;
inline constexpr uint64_t kPageIsHuge = 1u << 6;
inline constexpr uint64_t kPageIsSoftDirty = 1u << 7;
inline constexpr uint64_t kPageIsGuard = 1u << 8;  // Linux 6.15

// struct page_region: [start, end) in bytes.
struct PageRegion {
  uint64_t start;
  uint64_t end;
  uint64_t categories;
};

// PM_SCAN_*
inline constexpr uint64_t kScanWpMatching = 1u << 0;
inline constexpr uint64_t kScanCheckWpAsync = 1u << 1;

// struct pm_scan_arg
struct PagemapScanArguments {
  uint64_t size;
  uint64_t flags;
  uint64_t start;
  uint64_t end;
  uint64_t walk_end;
  uint64_t vec;
  uint64_t vec_len;
  uint64_t max_pages;
  uint64_t category_inverted;
  uint64_t category_mask;
  uint64_t category_anyof_mask;
  uint64_t return_mask;
};

static_assert(sizeof(PageRegion) == 24);
static_assert(sizeof(PagemapScanArguments) == 96);
static_assert(offsetof(PagemapScanArguments, walk_end) == 32);
static_assert(offsetof(PagemapScanArguments, return_mask) == 88);

inline constexpr unsigned long kPagemapScanIoctl = _IOWR('f', 16, PagemapScanArguments);

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_UAPI_PAGEMAP_SCAN_H_
