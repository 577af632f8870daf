// Mappings that come, go, move, grow, merge, change protection and are discarded, each page of
// which is known at every moment.
#ifndef PREDUMP_TESTS_WORKLOADS_CHURN_REGIONS_H_
#define PREDUMP_TESTS_WORKLOADS_CHURN_REGIONS_H_

#include <cstdint>
#include <span>
#include <string>

#include "tests/workloads/pages.h"
#include "tests/workloads/workload.h"

namespace predump::workloads {

// What is known of one page. `generation` 0: as the mapping was born (zero, or the file).
struct PageRecord {
  uint32_t generation;
  int protection;  // PROT_*
};

// One mapping. Its records live in memory mapped once, so that malloc, which would use brk and map
// at its own will, has no part in what is tested.
struct Region {
  std::byte* start;  // null: not mapped
  size_t pages;
  uint64_t key;  // content does not depend on the address: a region may move
  bool file_backed;
  bool unmoved;  // anonymous, where mmap put it: only there can a newcomer merge with it
  std::span<PageRecord> records;  // room for the largest region
};

class ChurnRegions {
 public:
  struct Settings {
    size_t regions;
    size_t most_pages;
    std::string file;  // made here: what private file mappings show
  };

  ChurnRegions(Workload& workload, const Settings& settings);

  // One operation on a region chosen at random. Returns how many pages it wrote.
  size_t Step();
  // Of the region made first, which is only ever written and verified.
  std::byte* fixed_page() const { return regions_[0].start; }
  size_t fixed_pages() const { return regions_[0].pages; }
  void VerifyAll();

 private:
  size_t Write(Region& region, size_t pages);
  bool WritePage(Region& region, size_t page);
  void VerifyPage(Region& region, size_t page);
  void Verify(Region& region, size_t first, size_t count);
  uint64_t Base(const Region& region, size_t page) const;

  void Adopt(Region& region, std::byte* start, size_t pages);
  size_t MapAnonymous(Region& region, size_t pages);
  size_t MapFile(Region& region);
  void Unmap(Region& region);
  void Resize(Region& region);
  void MoveAside(Region& region);
  void MoveBesideAnother(Region& region);
  void MoveLeavingZeroes(Region& region);
  void SwapPlaces(Region& a, Region& b);
  void Discard(Region& region);
  void Protect(Region& region);
  void MapOver(Region& region);
  // Moves the region to `address` (null: anywhere), keeping its size. False if refused.
  bool Move(Region& region, std::byte* address, int flags = 0);
  // Everything readable and writable again.
  void Unprotect(Region& region);
  Region& Pick();

  Workload& workload_;
  const Settings settings_;
  Random random_;
  int file_ = -1;
  std::span<Region> regions_;
  std::byte* newcomer_ = nullptr;  // mapped, never touched: the next to move beside another
  uint64_t next_key_ = 1;
  Counter& refused_;
  Counter& maps_;
  Counter& moves_;
  Counter& merges_;
  Counter& discards_;
  Counter& protects_;
};

}  // namespace predump::workloads

#endif  // PREDUMP_TESTS_WORKLOADS_CHURN_REGIONS_H_
