#include "src/pagemap/layout.h"

#include <sys/mman.h>

#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace predump::pagemap {
namespace {

constexpr uint64_t kPage = 4096;

base::AddressRange Pages(uint64_t first, uint64_t end) {
  return base::AddressRange::FromOrdered(first * kPage, end * kPage);
}

Vma Anonymous(uint64_t first, uint64_t end, uint32_t prot = PROT_READ | PROT_WRITE) {
  Vma vma;
  vma.range = Pages(first, end);
  vma.kind = VmaKind::kAnonymousPrivate;
  vma.prot = prot;
  return vma;
}

Vma File(uint64_t first, uint64_t end, uint64_t offset_pages, uint64_t inode = 7,
         VmaKind kind = VmaKind::kFilePrivate) {
  Vma vma = Anonymous(first, end);
  vma.kind = kind;
  vma.file_offset_bytes = offset_pages * kPage;
  vma.device = 1;
  vma.inode = inode;
  vma.path = "/file" + std::to_string(inode);
  return vma;
}

VmaList List(std::vector<Vma> vmas) { return VmaList(std::move(vmas)); }

std::vector<base::AddressRange> Maps(const std::vector<LayoutOp>& ops) {
  std::vector<base::AddressRange> ranges;
  for (const LayoutOp& op : ops) {
    if (op.kind == LayoutOp::Kind::kMap) ranges.push_back(op.range);
  }
  return ranges;
}

std::vector<base::AddressRange> Unmaps(const std::vector<LayoutOp>& ops) {
  std::vector<base::AddressRange> ranges;
  for (const LayoutOp& op : ops) {
    if (op.kind == LayoutOp::Kind::kUnmap) ranges.push_back(op.range);
  }
  return ranges;
}

using Ranges = std::vector<base::AddressRange>;

TEST(DiffLayoutTest, MapsEverythingAtFirst) {
  Vma shared = File(30, 40, 2, 9, VmaKind::kFileShared);
  Vma stack = Anonymous(50, 60);
  stack.grows_down = true;
  const auto ops =
      DiffLayout({}, List({Anonymous(1, 5, PROT_NONE), File(10, 20, 3), shared, stack}));
  ASSERT_EQ(ops.size(), 4u);
  EXPECT_EQ(ops[0].range, Pages(1, 5));
  EXPECT_EQ(ops[0].prot, static_cast<uint32_t>(PROT_NONE));
  EXPECT_TRUE(ops[0].path.empty());
  EXPECT_EQ(ops[1].path, "/file7");
  EXPECT_EQ(ops[1].file_offset_bytes, 3 * kPage);
  EXPECT_FALSE(ops[1].shared);
  EXPECT_FALSE(ops[1].writable_file);
  EXPECT_TRUE(ops[2].shared);
  EXPECT_TRUE(ops[2].writable_file);
  EXPECT_TRUE(ops[3].grows_down);
}

TEST(DiffLayoutTest, FlagsBecomeHints) {
  Vma vma = Anonymous(1, 5);
  vma.flags.bits = static_cast<uint64_t>(kernel::VmFlag::kHugePage) |
                   static_cast<uint64_t>(kernel::VmFlag::kNoReserve);
  Vma shared = File(10, 20, 0, 7, VmaKind::kFileShared);
  shared.prot = PROT_READ;
  shared.flags.bits = static_cast<uint64_t>(kernel::VmFlag::kMayWrite);
  const auto ops = DiffLayout({}, List({vma, shared}));
  ASSERT_EQ(ops.size(), 2u);
  EXPECT_TRUE(ops[0].huge_pages);
  EXPECT_TRUE(ops[0].no_reserve);
  EXPECT_FALSE(ops[0].no_huge_pages);
  EXPECT_TRUE(ops[1].writable_file);  // mprotect may make it so
}

TEST(DiffLayoutTest, NothingToDoWhereNothingChanged) {
  const VmaList list = List({Anonymous(1, 5), File(10, 20, 3)});
  EXPECT_TRUE(DiffLayout(list, list).empty());
}

TEST(DiffLayoutTest, SplitsMergesAndProtectionsTouchNothing) {
  const VmaList whole = List({Anonymous(1, 9), File(10, 20, 3)});
  const VmaList split = List({Anonymous(1, 3), Anonymous(3, 6, PROT_NONE), Anonymous(6, 9),
                              File(10, 12, 3), File(12, 20, 5)});
  EXPECT_TRUE(DiffLayout(whole, split).empty());
  EXPECT_TRUE(DiffLayout(split, whole).empty());
}

TEST(DiffLayoutTest, GrowthMapsOnlyWhatIsNew) {
  const auto ops = DiffLayout(List({Anonymous(10, 20)}), List({Anonymous(5, 30)}));
  EXPECT_EQ(Maps(ops), (Ranges{Pages(5, 10), Pages(20, 30)}));
  EXPECT_TRUE(Unmaps(ops).empty());
}

TEST(DiffLayoutTest, ShrinkingUnmapsOnlyWhatIsGone) {
  const auto ops =
      DiffLayout(List({Anonymous(5, 30)}), List({Anonymous(10, 12), Anonymous(15, 20)}));
  EXPECT_EQ(Unmaps(ops), (Ranges{Pages(5, 10), Pages(12, 15), Pages(20, 30)}));
  EXPECT_TRUE(Maps(ops).empty());
}

TEST(DiffLayoutTest, AnotherFileOrAnotherPartOfItIsMappedAnew) {
  const VmaList before = List({File(10, 20, 3)});
  EXPECT_EQ(Maps(DiffLayout(before, List({File(10, 20, 3, 8)}))), (Ranges{Pages(10, 20)}));
  EXPECT_EQ(Maps(DiffLayout(before, List({File(10, 20, 4)}))), (Ranges{Pages(10, 20)}));
  EXPECT_EQ(Maps(DiffLayout(before, List({Anonymous(10, 20)}))), (Ranges{Pages(10, 20)}));
  EXPECT_EQ(Maps(DiffLayout(before, List({File(10, 20, 3, 7, VmaKind::kFileShared)}))),
            (Ranges{Pages(10, 20)}));
}

TEST(DiffLayoutTest, APartReplacedInTheMiddleIsAllThatIsMapped) {
  const auto ops = DiffLayout(List({Anonymous(10, 30)}),
                              List({Anonymous(10, 15), File(15, 20, 0), Anonymous(20, 30)}));
  ASSERT_EQ(ops.size(), 1u);
  EXPECT_EQ(ops[0].range, Pages(15, 20));
}

TEST(DiffLayoutTest, APartOfANewMappingGetsItsOwnOffset) {
  const auto ops = DiffLayout(List({File(10, 14, 3)}), List({File(10, 20, 3)}));
  ASSERT_EQ(ops.size(), 1u);
  EXPECT_EQ(ops[0].range, Pages(14, 20));
  EXPECT_EQ(ops[0].file_offset_bytes, 7 * kPage);
}

TEST(DiffLayoutTest, WhatTheKernelProvidesAndWhatCannotMoveIsLeftOut) {
  std::vector<Vma> vmas;
  for (const VmaKind kind :
       {VmaKind::kVdso, VmaKind::kVvar, VmaKind::kVsyscall, VmaKind::kUnsupported}) {
    vmas.push_back(Anonymous(10 * vmas.size() + 1, 10 * vmas.size() + 5));
    vmas.back().kind = kind;
  }
  EXPECT_TRUE(DiffLayout({}, List(vmas)).empty());
  EXPECT_TRUE(DiffLayout(List(vmas), {}).empty());
}

TEST(DiffLayoutTest, GrowingDownwardsCountsOnlyWhereFlagsAreKnown) {
  const uint64_t readable = static_cast<uint64_t>(kernel::VmFlag::kReadable);
  Vma stack = Anonymous(10, 20);
  stack.grows_down = true;
  stack.flags.bits = readable | static_cast<uint64_t>(kernel::VmFlag::kGrowsDown);
  Vma plain = Anonymous(10, 20);
  EXPECT_TRUE(DiffLayout(List({stack}), List({plain})).empty());
  plain.flags.bits = readable;
  EXPECT_EQ(Maps(DiffLayout(List({stack}), List({plain}))), (Ranges{Pages(10, 20)}));
}

// What lies at one page: nothing, or a mapping with the byte of the file that is there.
using Page = std::pair<int, uint64_t>;

std::map<uint64_t, Page> PagesOf(const VmaList& list) {
  std::map<uint64_t, Page> pages;
  for (const Vma& vma : list.vmas()) {
    for (uint64_t at = vma.range.start().value(); at < vma.range.end().value(); at += kPage) {
      pages[at / kPage] = vma.kind == VmaKind::kAnonymousPrivate
                              ? Page{0, 0}
                              : Page{static_cast<int>(vma.kind) * 10 + static_cast<int>(vma.inode),
                                     vma.file_offset_bytes + at - vma.range.start().value()};
    }
  }
  return pages;
}

TEST(DiffLayoutTest, LeadsFromAnyLayoutToAnyOtherTouchingNoPageThatStays) {
  std::mt19937_64 random(11);
  const auto below = [&](uint64_t n) { return random() % n; };
  const auto random_list = [&] {
    std::vector<Vma> vmas;
    for (uint64_t at = below(4); at < 60;) {
      const uint64_t end = at + 1 + below(8);
      const uint64_t what = below(4);
      if (what == 0) vmas.push_back(Anonymous(at, end));
      if (what == 1) vmas.push_back(File(at, end, below(2) == 0 ? at : at + 1, 1 + below(2)));
      if (what == 2) vmas.push_back(File(at, end, at, 1, VmaKind::kFileShared));
      at = end + (below(2) == 0 ? 0 : below(4));
    }
    return List(std::move(vmas));
  };
  for (int i = 0; i < 2000; ++i) {
    const VmaList before = random_list();
    const VmaList after = random_list();
    std::map<uint64_t, Page> pages = PagesOf(before);
    const std::map<uint64_t, Page> old_pages = pages;
    const std::map<uint64_t, Page> wanted = PagesOf(after);
    for (const LayoutOp& op : DiffLayout(before, after)) {
      for (uint64_t at = op.range.start().value(); at < op.range.end().value(); at += kPage) {
        const uint64_t page = at / kPage;
        const auto old_page = old_pages.find(page);
        const auto new_page = wanted.find(page);
        EXPECT_FALSE(old_page != old_pages.end() && new_page != wanted.end() &&
                     old_page->second == new_page->second)
            << "page " << page << " stayed what it was";
        pages.erase(page);
        if (op.kind == LayoutOp::Kind::kMap) {
          ASSERT_NE(new_page, wanted.end());
          pages[page] = new_page->second;
          if (!op.path.empty()) {
            EXPECT_EQ(op.file_offset_bytes + at - op.range.start().value(),
                      new_page->second.second);
          }
        }
      }
    }
    EXPECT_EQ(pages, wanted);
  }
}

}  // namespace
}  // namespace predump::pagemap
