#include "src/pagemap/extent.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace predump::pagemap {
namespace {

using base::AddressRange;

AddressRange Cut(base::RemoteAddress start, base::RemoteAddress end) {
  return AddressRange::FromOrdered(start.value(), end.value());
}

// First extent that ends after `address`: the only one that may contain it.
std::vector<Extent>::const_iterator FirstEndingAfter(const std::vector<Extent>& extents,
                                                     base::RemoteAddress address) {
  return std::partition_point(extents.begin(), extents.end(),
                              [&](const Extent& e) { return e.end() <= address; });
}

// Appends `extent`, which starts at or after the start of the last one, keeping canonical form.
void Append(std::vector<Extent>& extents, Extent extent) {
  if (!extents.empty() && extent.start() <= extents.back().end()) {
    Extent& last = extents.back();
    last = Cut(last.start(), std::max(last.end(), extent.end()));
    return;
  }
  extents.push_back(extent);
}

// Above this ratio of lengths, searching in the longer list beats walking it.
constexpr size_t kSearchRatio = 16;

}  // namespace

ExtentSet ExtentSet::FromUnsorted(std::vector<Extent> extents) {
  if (!std::is_sorted(extents.begin(), extents.end())) std::sort(extents.begin(), extents.end());
  ExtentSet set;
  set.extents_.reserve(extents.size());
  for (const Extent& extent : extents) {
    if (!extent.empty()) Append(set.extents_, extent);
  }
  return set;
}

void ExtentSet::Add(Extent extent) {
  if (extent.empty()) return;
  if (extents_.empty() || extents_.back().start() <= extent.start()) {
    Append(extents_, extent);
    return;
  }
  // The extents that overlap or touch the new one become one with it.
  const auto first = std::partition_point(
      extents_.begin(), extents_.end(), [&](const Extent& e) { return e.end() < extent.start(); });
  const auto last = std::partition_point(
      first, extents_.end(), [&](const Extent& e) { return e.start() <= extent.end(); });
  if (first == last) {
    extents_.insert(first, extent);
    return;
  }
  *first =
      Cut(std::min(first->start(), extent.start()), std::max(std::prev(last)->end(), extent.end()));
  extents_.erase(std::next(first), last);
}

void ExtentSet::AddAll(const ExtentSet& other) {
  if (other.empty()) return;
  if (extents_.empty() || extents_.back().start() <= other.extents_.front().start()) {
    for (const Extent& extent : other.extents_) Append(extents_, extent);
    return;
  }
  std::vector<Extent> merged;
  merged.reserve(extents_.size() + other.extents_.size());
  auto a = extents_.begin();
  auto b = other.extents_.begin();
  while (a != extents_.end() || b != other.extents_.end()) {
    const bool take_a =
        b == other.extents_.end() || (a != extents_.end() && a->start() <= b->start());
    Append(merged, take_a ? *a++ : *b++);
  }
  extents_ = std::move(merged);
}

void ExtentSet::Subtract(const ExtentSet& other) {
  if (empty() || other.empty()) return;
  if (other.extents_.size() == 1) {
    Subtract(other.extents_.front());
    return;
  }
  std::vector<Extent> rest;
  rest.reserve(extents_.size());
  auto hole = FirstEndingAfter(other.extents_, extents_.front().start());
  for (const Extent& extent : extents_) {
    while (hole != other.extents_.end() && hole->end() <= extent.start()) ++hole;
    base::RemoteAddress from = extent.start();
    // A hole may reach into the next extent: look on from it without moving `hole`.
    for (auto h = hole; h != other.extents_.end() && h->start() < extent.end(); ++h) {
      if (from < h->start()) rest.push_back(Cut(from, h->start()));
      from = std::max(from, h->end());
      if (h->end() <= extent.end()) hole = h;
    }
    if (from < extent.end()) rest.push_back(Cut(from, extent.end()));
  }
  extents_ = std::move(rest);
}

void ExtentSet::Subtract(Extent extent) {
  if (extent.empty()) return;
  const auto first =
      extents_.begin() + (FirstEndingAfter(extents_, extent.start()) - extents_.cbegin());
  const auto last = std::partition_point(first, extents_.end(),
                                         [&](const Extent& e) { return e.start() < extent.end(); });
  if (first == last) return;
  std::vector<Extent> rest;
  if (first->start() < extent.start()) rest.push_back(Cut(first->start(), extent.start()));
  if (extent.end() < std::prev(last)->end()) {
    rest.push_back(Cut(extent.end(), std::prev(last)->end()));
  }
  const auto after = extents_.erase(first, last);
  extents_.insert(after, rest.begin(), rest.end());
}

ExtentSet ExtentSet::Intersection(const ExtentSet& other) const {
  const ExtentSet& few = extents_.size() <= other.extents_.size() ? *this : other;
  const ExtentSet& many = &few == this ? other : *this;
  ExtentSet common;
  if (few.empty()) return common;
  const bool search = many.extents_.size() / few.extents_.size() >= kSearchRatio;
  auto m = FirstEndingAfter(many.extents_, few.extents_.front().start());
  for (const Extent& extent : few.extents_) {
    if (search) {
      m = std::partition_point(m, many.extents_.end(),
                               [&](const Extent& e) { return e.end() <= extent.start(); });
    }
    while (m != many.extents_.end() && m->end() <= extent.start()) ++m;
    for (auto i = m; i != many.extents_.end() && i->start() < extent.end(); ++i) {
      common.extents_.push_back(extent.Intersect(*i));
      m = i;
    }
  }
  return common;
}

bool ExtentSet::Contains(base::RemoteAddress address) const {
  const auto it = FirstEndingAfter(extents_, address);
  return it != extents_.end() && it->start() <= address;
}

bool ExtentSet::Overlaps(Extent extent) const {
  if (extent.empty()) return false;
  const auto it = FirstEndingAfter(extents_, extent.start());
  return it != extents_.end() && it->start() < extent.end();
}

base::PageCount ExtentSet::pages() const {
  base::ByteCount bytes(0);
  for (const Extent& extent : extents_) bytes += extent.size();
  return base::ToPages(bytes);
}

}  // namespace predump::pagemap
