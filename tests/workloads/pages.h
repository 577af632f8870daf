// Memory that knows what it must hold: each page is filled from (seed, page, generation), and the
// generations are kept beside it, in memory that moves too. A page from an older round, a page
// zeroed, dropped or put elsewhere all fail the check.
#ifndef PREDUMP_TESTS_WORKLOADS_PAGES_H_
#define PREDUMP_TESTS_WORKLOADS_PAGES_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tests/workloads/workload.h"

namespace predump::workloads {

inline constexpr size_t kPageBytes = 4096;
inline constexpr size_t kWordsPerPage = kPageBytes / sizeof(uint64_t);

// What a page holds: word i is `base + i * kStride`.
inline constexpr uint64_t kWordStride = 0x9E3779B97F4A7C15;
uint64_t PageBase(uint64_t seed, uint64_t page, uint64_t generation);
void FillPage(void* page, uint64_t base);
// The first word that differs, or kWordsPerPage.
size_t FirstBadWord(const void* page, uint64_t base);
// The first word that is not zero, or kWordsPerPage.
size_t FirstNonZeroWord(const void* page);

// A region of such pages, not owned. Generation 0 is what the constructor's fill wrote.
class CheckedPages {
 public:
  // `memory` is page aligned, readable and writable. Fills every page unless `fill` is false; then
  // a page counts as zero until its first Write().
  CheckedPages(Workload& workload, void* memory, size_t pages, uint64_t seed, bool fill = true);

  size_t pages() const { return generations_.size(); }
  std::byte* page(size_t index) const { return memory_ + index * kPageBytes; }
  // Checks the page, then gives it its next generation.
  void Write(size_t index);
  // Reports a page that is wrong once, and mends it.
  bool Verify(size_t index);
  void VerifyAll();
  // Writes the pages anew without looking at what they hold: the caller has discarded them.
  void Refill(size_t first, size_t count);
  // They read as zero from now on (only where the constructor did not fill).
  void MarkDiscarded(size_t first, size_t count);

 private:
  void Complain(size_t index, size_t word);

  Workload& workload_;
  std::byte* memory_;
  uint64_t seed_;
  bool zero_at_first_;
  std::vector<uint32_t> generations_;
};

// Private anonymous memory of `pages` pages (at `address`, unless null), or Die().
void* MapPages(size_t pages, void* address = nullptr);

}  // namespace predump::workloads

#endif  // PREDUMP_TESTS_WORKLOADS_PAGES_H_
