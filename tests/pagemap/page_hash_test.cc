#include "src/pagemap/page_hash.h"

#include <sys/mman.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/errors.h"
#include "tests/pagemap/memory_actor.h"
#include "tests/support/temp_dir.h"

namespace predump::pagemap {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kBase = 0x700000000000;
constexpr uint64_t kFileBase = 0x701000000000;

Extent Pages(uint64_t base, uint64_t first, uint64_t count) {
  return base::AddressRange::FromOrdered(base + first * kPage, base + (first + count) * kPage);
}

// Two processes with the same memory, as a source and its target have.
class PageHashTest : public testing::Test {
 protected:
  void SetUp() override {
    std::ofstream(temp_.File("mapped"), std::ios::binary) << std::string(16 * kPage, 'f');
    for (MemoryActor* actor : {&source_, &target_}) {
      actor->Map(kBase, 1024 * kPage);
      actor->Write(kBase, 600 * kPage, 1);
      actor->MapFile(temp_.File("mapped").c_str(), kFileBase, 16 * kPage, MAP_PRIVATE);
      actor->Write(kFileBase, 4 * kPage, 1);
      actor->Read(kFileBase + 10 * kPage);
      actor->Read(kBase + 700 * kPage);
    }
  }

  // Only what this test mapped: the rest of two forks differs rightly.
  static VmaList Ours(const kernel::ProcessHandle& process) {
    const auto all = VmaList::Read(process, false);
    EXPECT_TRUE(all.ok());
    std::vector<Vma> ours;
    for (const Vma& vma : all->vmas()) {
      if (vma.range.start().value() == kBase || vma.range.start().value() == kFileBase ||
          (vma.range.start().value() > kBase && vma.range.end().value() <= kBase + 1024 * kPage)) {
        ours.push_back(vma);
      }
    }
    return VmaList(ours);
  }

  ExpectedPages Expected() {
    ExpectedPages expected;
    const auto pages = DataPages(source_.process(), Ours(source_.process()));
    EXPECT_TRUE(pages.ok()) << pages.status();
    expected.pages = *pages;
    const auto hashes = HashPages(source_.process(), expected.pages.extents(), masked_);
    EXPECT_TRUE(hashes.ok()) << hashes.status();
    expected.hashes = *hashes;
    return expected;
  }

  PageDifferences Compare() {
    const auto differences =
        ComparePages(target_.process(), Ours(target_.process()), Expected(), masked_);
    EXPECT_TRUE(differences.ok()) << differences.status();
    return differences.ok() ? *differences : PageDifferences();
  }

  test_support::TempDir temp_ = *test_support::TempDir::Create();
  MemoryActor source_;
  MemoryActor target_;
  std::vector<base::AddressRange> masked_;
};

TEST_F(PageHashTest, DataPagesAreThoseWithDataOfTheirOwn) {
  ExtentSet expected = ExtentSet::FromUnsorted({Pages(kBase, 0, 600), Pages(kFileBase, 0, 4)});
  if (!MemoryOnlyReadIsTheZeroPage()) expected.Add(Pages(kBase, 700, 1));
  EXPECT_EQ(Expected().pages, expected);
}

TEST_F(PageHashTest, EqualMemoryComparesEqual) {
  const ExpectedPages expected = Expected();
  EXPECT_EQ(expected.hashes.size(), MemoryOnlyReadIsTheZeroPage() ? 604u : 605u);
  EXPECT_NE(expected.hashes[0], expected.hashes[1]);
  EXPECT_TRUE(Compare().none());
}

TEST_F(PageHashTest, PagesThatDifferAreNamed) {
  target_.Write(kBase + 5 * kPage, 2 * kPage, 9);
  target_.Write(kBase + 599 * kPage, kPage, 9);
  target_.Write(kFileBase + kPage, kPage, 9);
  const PageDifferences differences = Compare();
  EXPECT_EQ(
      differences.differing,
      ExtentSet::FromUnsorted({Pages(kBase, 5, 2), Pages(kBase, 599, 1), Pages(kFileBase, 1, 1)}));
  EXPECT_TRUE(differences.unexpected.empty());
}

TEST_F(PageHashTest, APageThatWasNotReceivedDiffers) {
  target_.Discard(kBase + 8 * kPage, kPage);
  EXPECT_EQ(Compare().differing, ExtentSet::FromUnsorted({Pages(kBase, 8, 1)}));
}

TEST_F(PageHashTest, AnUnmappedPageDiffers) {
  target_.Unmap(kBase + 100 * kPage, 3 * kPage);
  EXPECT_EQ(Compare().differing, ExtentSet::FromUnsorted({Pages(kBase, 100, 3)}));
}

TEST_F(PageHashTest, DataTheSourceDoesNotHaveIsUnexpected) {
  source_.Discard(kBase + 3 * kPage, kPage);
  target_.Write(kBase + 800 * kPage, kPage, 1);
  EXPECT_EQ(Compare().unexpected,
            ExtentSet::FromUnsorted({Pages(kBase, 3, 1), Pages(kBase, 800, 1)}));
}

TEST_F(PageHashTest, PrivateCopiesOfFilePagesAreUnexpectedOnlyWhereTheyDifferFromTheFile) {
  target_.Write(kFileBase + 12 * kPage, kPage, 1);
  target_.Call(
      [](const MemoryActor::Arguments& a) -> int64_t {
        auto* byte = reinterpret_cast<volatile char*>(a[0]);
        *byte = *byte;  // a private copy, the same as the file
        return 0;
      },
      {kFileBase + 13 * kPage});
  EXPECT_EQ(Compare().unexpected, ExtentSet::FromUnsorted({Pages(kFileBase, 12, 1)}));
}

TEST_F(PageHashTest, ZerosWrittenAtTheTargetAreAsGoodAsNothing) {
  target_.Call(
      [](const MemoryActor::Arguments& a) -> int64_t {
        *reinterpret_cast<volatile char*>(a[0]) = 0;
        return 0;
      },
      {kBase + 900 * kPage});
  EXPECT_TRUE(Compare().none());
}

TEST_F(PageHashTest, MaskedBytesAreTakenAsZeros) {
  target_.Write(kBase + 5 * kPage, kPage, 9);
  target_.Write(kBase + 300 * kPage, kPage, 9);
  masked_ = {Pages(kBase, 300, 1), Pages(kBase, 5, 1)};
  EXPECT_TRUE(Compare().none());
  // Not a byte more: the page after, and the last bytes of the page itself.
  masked_ = {base::AddressRange::FromOrdered(kBase + 5 * kPage, kBase + 6 * kPage - 8),
             Pages(kBase, 300, 1)};
  EXPECT_EQ(Compare().differing, ExtentSet::FromUnsorted({Pages(kBase, 5, 1)}));
}

TEST_F(PageHashTest, MemoryWithoutReadPermissionIsComparedToo) {
  for (MemoryActor* actor : {&source_, &target_}) {
    actor->Protect(kBase + 20 * kPage, 4 * kPage, PROT_NONE);
  }
  EXPECT_TRUE(Compare().none());
  target_.Protect(kBase + 20 * kPage, 4 * kPage, PROT_READ | PROT_WRITE);
  target_.Write(kBase + 21 * kPage, kPage, 2);
  target_.Protect(kBase + 20 * kPage, 4 * kPage, PROT_NONE);
  EXPECT_EQ(Compare().differing, ExtentSet::FromUnsorted({Pages(kBase, 21, 1)}));
}

TEST_F(PageHashTest, NumbersThatDoNotMatchAreRefused) {
  ExpectedPages expected = Expected();
  expected.hashes.pop_back();
  EXPECT_EQ(ComparePages(target_.process(), Ours(target_.process()), expected, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(PageHashTest, AnExitedProcessIsReportedAsSuch) {
  const ExpectedPages expected = Expected();
  const VmaList vmas = Ours(target_.process());
  target_.Kill();
  EXPECT_TRUE(base::IsTargetExited(ComparePages(target_.process(), vmas, expected, {}).status()));
  EXPECT_TRUE(
      base::IsTargetExited(HashPages(target_.process(), expected.pages.extents(), {}).status()));
}

}  // namespace
}  // namespace predump::pagemap
