#include "src/pagemap/extent.h"

#include <algorithm>
#include <bitset>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace predump::pagemap {
namespace {

constexpr uint64_t kPage = 4096;
constexpr size_t kPages = 256;
using Bitmap = std::bitset<kPages>;

Extent Pages(uint64_t first, uint64_t end) {
  return base::AddressRange::FromOrdered(first * kPage, end * kPage);
}

ExtentSet FromBitmap(const Bitmap& bitmap) {
  std::vector<Extent> extents;
  for (size_t i = 0; i < kPages; ++i) {
    if (bitmap[i]) extents.push_back(Pages(i, i + 1));
  }
  return ExtentSet::FromUnsorted(extents);
}

Bitmap ToBitmap(const ExtentSet& set) {
  Bitmap bitmap;
  for (const Extent& extent : set.extents()) {
    for (uint64_t at = extent.start().value(); at < extent.end().value(); at += kPage) {
      bitmap.set(at / kPage);
    }
  }
  return bitmap;
}

void ExpectCanonical(const ExtentSet& set) {
  for (size_t i = 0; i < set.extents().size(); ++i) {
    EXPECT_FALSE(set.extents()[i].empty());
    if (i == 0) continue;
    EXPECT_LT(set.extents()[i - 1].end(), set.extents()[i].start());
  }
}

class ExtentSetProperties : public testing::TestWithParam<int> {
 protected:
  uint64_t Below(uint64_t bound) {
    return std::uniform_int_distribution<uint64_t>(0, bound - 1)(random_);
  }
  Extent RandomExtent() {
    const uint64_t first = Below(kPages);
    return Pages(first, first + Below(std::min<uint64_t>(kPages - first, longest_) + 1));
  }
  Bitmap RandomBitmap() {
    Bitmap bitmap;
    for (uint64_t n = Below(60); n > 0; --n) {
      const Extent e = RandomExtent();
      for (uint64_t at = e.start().value(); at < e.end().value(); at += kPage)
        bitmap.set(at / kPage);
    }
    return bitmap;
  }

  std::mt19937_64 random_{static_cast<uint64_t>(GetParam())};
  uint64_t longest_ = GetParam() % 2 == 0 ? 3 : 40;
};

TEST_P(ExtentSetProperties, BehavesAsASetOfPages) {
  for (int i = 0; i < 200; ++i) {
    const Bitmap a = RandomBitmap();
    const Bitmap b = RandomBitmap();
    const ExtentSet set_a = FromBitmap(a);
    const ExtentSet set_b = FromBitmap(b);
    EXPECT_EQ(ToBitmap(set_a), a);
    EXPECT_EQ(set_a.pages().value(), a.count());
    EXPECT_EQ(set_a == set_b, a == b);

    ExtentSet sum = set_a;
    sum.AddAll(set_b);
    EXPECT_EQ(sum, FromBitmap(a | b));
    ExtentSet difference = set_a;
    difference.Subtract(set_b);
    EXPECT_EQ(difference, FromBitmap(a & ~b));
    EXPECT_EQ(set_a.Intersection(set_b), FromBitmap(a & b));

    const Extent extent = RandomExtent();
    ExtentSet one;
    one.Add(extent);
    const Bitmap single = ToBitmap(one);
    ExtentSet added = set_a;
    added.Add(extent);
    EXPECT_EQ(added, FromBitmap(a | single));
    ExtentSet cut = set_a;
    cut.Subtract(extent);
    EXPECT_EQ(cut, FromBitmap(a & ~single));
    EXPECT_EQ(set_a.Intersection(one), FromBitmap(a & single));
    EXPECT_EQ(set_a.Overlaps(extent), (a & single).any());
    const uint64_t page = Below(kPages);
    EXPECT_EQ(set_a.Contains(base::RemoteAddress(page * kPage + Below(kPage))), a[page]);
    for (const ExtentSet* set : {&sum, &difference, &added, &cut}) ExpectCanonical(*set);
  }
}

TEST_P(ExtentSetProperties, IsTheSameInWhateverOrderItWasBuilt) {
  std::vector<Extent> extents;
  for (int i = 0; i < 40; ++i) extents.push_back(RandomExtent());
  const ExtentSet expected = ExtentSet::FromUnsorted(extents);
  std::shuffle(extents.begin(), extents.end(), random_);
  ExtentSet built;
  for (const Extent& extent : extents) built.Add(extent);
  EXPECT_EQ(built, expected);
  ExpectCanonical(built);
}

INSTANTIATE_TEST_SUITE_P(Seeds, ExtentSetProperties, testing::Range(0, 8));

TEST(ExtentSetTest, NeighboursThatTouchAreOneExtent) {
  ExtentSet set;
  set.Add(Pages(1, 2));
  set.Add(Pages(5, 6));
  set.Add(Pages(2, 3));
  EXPECT_EQ(set.extents(), (std::vector<Extent>{Pages(1, 3), Pages(5, 6)}));
  set.Add(Pages(3, 5));
  EXPECT_EQ(set.extents(), (std::vector<Extent>{Pages(1, 6)}));
}

TEST(ExtentSetTest, SearchesWhereOneSideIsMuchLonger) {
  std::vector<Extent> many;
  for (uint64_t i = 0; i < 1000; ++i) many.push_back(Pages(2 * i, 2 * i + 1));
  const ExtentSet set = ExtentSet::FromUnsorted(many);
  ExtentSet few;
  few.Add(Pages(500, 503));
  few.Add(Pages(1501, 1502));
  few.Add(Pages(1997, 3000));
  const std::vector<Extent> expected{Pages(500, 501), Pages(502, 503), Pages(1998, 1999)};
  EXPECT_EQ(set.Intersection(few).extents(), expected);
  EXPECT_EQ(few.Intersection(set).extents(), expected);
}

TEST(ExtentSetTest, AnEmptyExtentChangesNothing) {
  ExtentSet set;
  set.Add(Pages(3, 3));
  EXPECT_TRUE(set.empty());
  set.Add(Pages(1, 4));
  set.Subtract(Pages(2, 2));
  EXPECT_EQ(set.extents(), (std::vector<Extent>{Pages(1, 4)}));
  EXPECT_FALSE(set.Overlaps(Pages(2, 2)));
}

}  // namespace
}  // namespace predump::pagemap
