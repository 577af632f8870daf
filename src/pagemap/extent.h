// Extents: runs of pages, the currency between trackers, sources and the wire.
//
// Example: pages 0x1000, 0x2000 and 0x5000 dirty are the extents {0x1000-0x3000, 0x5000-0x6000}.
// An ExtentList is ascending, its extents are disjoint, non-empty and page-aligned; neighbours that
// touch are one extent (canonical form), so equal sets of pages are equal lists.
#ifndef PREDUMP_PAGEMAP_EXTENT_H_
#define PREDUMP_PAGEMAP_EXTENT_H_

#include <vector>

#include "src/base/units.h"

namespace predump::pagemap {

using Extent = base::AddressRange;

// A set of pages in canonical form.
class ExtentSet {
 public:
  ExtentSet() = default;
  // From extents in any order, overlapping or not.
  static ExtentSet FromUnsorted(std::vector<Extent> extents);

  // Adds a run. O(1) when it lies at or after the end of the set, as scans deliver it.
  void Add(Extent extent);
  void AddAll(const ExtentSet& other);
  void Subtract(const ExtentSet& other);
  void Subtract(Extent extent);
  ExtentSet Intersection(const ExtentSet& other) const;
  bool Contains(base::RemoteAddress address) const;
  bool Overlaps(Extent extent) const;

  const std::vector<Extent>& extents() const { return extents_; }
  base::PageCount pages() const;
  bool empty() const { return extents_.empty(); }
  void clear() { extents_.clear(); }

  friend bool operator==(const ExtentSet& a, const ExtentSet& b) {
    return a.extents_ == b.extents_;
  }

 private:
  std::vector<Extent> extents_;
};

}  // namespace predump::pagemap

#endif  // PREDUMP_PAGEMAP_EXTENT_H_
