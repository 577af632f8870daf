#include "src/images/page_chain.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/images/stored_pages.h"
#include "tests/support/temp_dir.h"

namespace predump::images {
namespace {

using ::testing::HasSubstr;
using testing::kTask;
using testing::LinkParent;
using testing::MakeImages;
using testing::MarkOf;

class PageChainTest : public ::testing::Test {
 protected:
  std::string Path(int number) { return directory_.File(absl::StrCat(number)); }

  // The only byte in the page at `address`; -1 where the chain has no such page, -2 where the page
  // is not all of one byte.
  static int ByteAt(const PageChain& chain, uint64_t address) {
    std::byte page[4096];
    if (!chain.Read(address, page).ok()) return -1;
    const bool same = std::all_of(page, page + sizeof page, [&](auto b) { return b == page[0]; });
    return same ? static_cast<int>(page[0]) : -2;
  }

  std::string ErrorOf(int directory_fd) {
    const absl::StatusOr<PageChain> chain = PageChain::Open(directory_fd, kTask);
    if (chain.ok()) return "";
    EXPECT_EQ(chain.status().code(), absl::StatusCode::kDataLoss) << chain.status();
    return std::string(chain.status().message());
  }

  test_support::TempDir directory_ = *test_support::TempDir::Create();
};

TEST_F(PageChainTest, FindsEachPageInTheDirectoryThatHasIt) {
  // Oldest first; each splits the ranges of the one before differently.
  MakeImages(Path(1), {{0x10000, 8, 4}, {0x20000, 4, 4}, {0x40000, 1, 4}}, 1);
  const auto second =
      MakeImages(Path(2), {{0x10000, 2, 1}, {0x12000, 1, 4}, {0x13000, 5, 1}, {0x20000, 4, 6}}, 2);
  LinkParent(second.get(), "../1");
  const auto third = MakeImages(
      Path(3),
      {{0x10000, 1, 4}, {0x11000, 3, 1}, {0x14000, 2, 4}, {0x16000, 1, 1}, {0x21000, 2, 1}}, 3);
  LinkParent(third.get(), "../2");

  const absl::StatusOr<PageChain> chain = PageChain::Open(third.get(), kTask);
  ASSERT_TRUE(chain.ok()) << chain.status();
  EXPECT_EQ(ByteAt(*chain, 0x10000), MarkOf(3, 0));
  EXPECT_EQ(ByteAt(*chain, 0x11000), MarkOf(1, 1));
  EXPECT_EQ(ByteAt(*chain, 0x12000), MarkOf(2, 0));
  EXPECT_EQ(ByteAt(*chain, 0x13000), MarkOf(1, 3));
  EXPECT_EQ(ByteAt(*chain, 0x14000), MarkOf(3, 1));
  EXPECT_EQ(ByteAt(*chain, 0x15000), MarkOf(3, 2));
  EXPECT_EQ(ByteAt(*chain, 0x16000), MarkOf(1, 6));
  EXPECT_EQ(ByteAt(*chain, 0x17000), -1);  // was unmapped before the third
  EXPECT_EQ(ByteAt(*chain, 0x20000), -1);
  EXPECT_EQ(ByteAt(*chain, 0x21000), MarkOf(2, 2));
  EXPECT_EQ(ByteAt(*chain, 0x22000), MarkOf(2, 3));
  EXPECT_EQ(ByteAt(*chain, 0x23000), -1);
  EXPECT_EQ(ByteAt(*chain, 0x40000), -1);
  uint64_t end = 0;
  for (const StoredRun& run : chain->runs()) {
    EXPECT_GE(run.start, end);
    EXPECT_GT(run.pages, 0u);
    end = run.end();
  }
}

TEST_F(PageChainTest, JoinsWhatLiesTogether) {
  const auto first = MakeImages(Path(1), {{0x1000, 1, 4}, {0x2000, 1, 4}, {0x3000, 2, 6}}, 1);
  const absl::StatusOr<PageChain> chain = PageChain::Open(first.get(), kTask);
  ASSERT_TRUE(chain.ok()) << chain.status();
  ASSERT_EQ(chain->runs().size(), 1u);
  EXPECT_EQ(chain->runs()[0].pages, 4u);
}

TEST_F(PageChainTest, ReadsAcrossRunsAndSaysWhatIsNotThere) {
  MakeImages(Path(1), {{0x1000, 3, 4}}, 1);
  const auto second = MakeImages(Path(2), {{0x1000, 1, 1}, {0x2000, 1, 4}, {0x3000, 1, 1}}, 2);
  LinkParent(second.get(), "../1");
  const absl::StatusOr<PageChain> chain = PageChain::Open(second.get(), kTask);
  ASSERT_TRUE(chain.ok()) << chain.status();
  std::vector<std::byte> pages(3 * 4096);
  ASSERT_TRUE(chain->Read(0x1000, pages).ok());
  EXPECT_EQ(static_cast<int>(pages[0]), MarkOf(1, 0));
  EXPECT_EQ(static_cast<int>(pages[4096]), MarkOf(2, 0));
  EXPECT_EQ(static_cast<int>(pages[3 * 4096 - 1]), MarkOf(1, 2));
  const absl::Status status = chain->Read(0x2000, pages);
  EXPECT_TRUE(absl::IsNotFound(status));
  EXPECT_THAT(status.message(), HasSubstr("0x4000"));
  ASSERT_EQ(::truncate(absl::StrCat(Path(1), "/pages-1.img").c_str(), 4096), 0);
  EXPECT_TRUE(absl::IsDataLoss(chain->Read(0x1000, pages)));
}

TEST_F(PageChainTest, LooksAtParentsOnlyWherePagesAreThere) {
  const auto first = MakeImages(Path(1), {{0x1000, 1, 4}}, 1);
  LinkParent(first.get(), "../nowhere");
  EXPECT_EQ(ErrorOf(first.get()), "");
}

TEST_F(PageChainTest, RefusesAMissingParent) {
  const auto first = MakeImages(Path(1), {{0x5000, 1, 1}}, 1);
  EXPECT_THAT(ErrorOf(first.get()), AllOf(HasSubstr("0x5000"), HasSubstr("no `parent`")));
}

TEST_F(PageChainTest, RefusesADanglingParent) {
  const auto first = MakeImages(Path(1), {{0x5000, 1, 1}}, 1);
  LinkParent(first.get(), "../nowhere");
  EXPECT_THAT(ErrorOf(first.get()), HasSubstr("`parent` leads to a directory that is not there"));
}

TEST_F(PageChainTest, RefusesAParentThatIsNoDirectory) {
  const auto first = MakeImages(Path(1), {{0x5000, 1, 1}}, 1);
  LinkParent(first.get(), "pagemap-7.img");
  EXPECT_THAT(ErrorOf(first.get()), HasSubstr("no directory"));
}

TEST_F(PageChainTest, RefusesAParentOfAnotherProcess) {
  const auto parent = testing::MakeDirectory(Path(1));
  testing::WriteEntries(parent.get(), {{0x5000, 1, 4}}, {PagesOf::Kind::kTask, 8});
  const auto child = MakeImages(Path(2), {{0x5000, 1, 1}}, 1);
  LinkParent(child.get(), "../1");
  EXPECT_THAT(ErrorOf(child.get()), AllOf(HasSubstr("0x5000"), HasSubstr("no pagemap-7.img")));
}

TEST_F(PageChainTest, RefusesAParentThatLacksAPage) {
  MakeImages(Path(1), {{0x5000, 2, 4}, {0x8000, 1, 4}}, 1);
  const auto child = MakeImages(Path(2), {{0x5000, 4, 1}}, 1);
  LinkParent(child.get(), "../1");
  EXPECT_THAT(ErrorOf(child.get()), AllOf(HasSubstr("0x7000"), HasSubstr(Path(1))));
}

TEST_F(PageChainTest, RefusesCircles) {
  const auto first = MakeImages(Path(1), {{0x5000, 2, 1}}, 1);
  LinkParent(first.get(), "../2");
  const auto second = MakeImages(Path(2), {{0x5000, 2, 1}}, 1);
  LinkParent(second.get(), "../1");
  EXPECT_THAT(ErrorOf(first.get()), HasSubstr("circle"));
  const auto self = MakeImages(Path(3), {{0x5000, 2, 1}}, 1);
  LinkParent(self.get(), ".");
  EXPECT_THAT(ErrorOf(self.get()), HasSubstr("circle"));
}

TEST_F(PageChainTest, RefusesAParentThatIsBroken) {
  const auto first = MakeImages(Path(1), {{0x5000, 2, 4}}, 1);
  const auto second = MakeImages(Path(2), {{0x5000, 2, 1}}, 1);
  LinkParent(second.get(), "../1");
  ASSERT_EQ(::truncate(absl::StrCat(Path(1), "/pages-1.img").c_str(), 100), 0);
  EXPECT_THAT(ErrorOf(second.get()), AllOf(HasSubstr("cut short"), HasSubstr(Path(1))));
}

TEST_F(PageChainTest, RefusesChainsThatNeverEnd) {
  MakeImages(Path(0), {{0x5000, 1, 4}}, 1);
  const auto model = MakeImages(directory_.File("model"), {{0x5000, 1, 1}}, 1);
  for (int i = 1; i <= PageChain::kMaxDepth; ++i) {
    const auto fd = testing::MakeDirectory(Path(i));
    ASSERT_EQ(::linkat(model.get(), "pagemap-7.img", fd.get(), "pagemap-7.img", 0), 0);
    LinkParent(fd.get(), absl::StrCat("../", i - 1));
  }
  const auto at_limit = testing::MakeDirectory(Path(PageChain::kMaxDepth - 1));
  EXPECT_EQ(ErrorOf(at_limit.get()), "");
  const auto beyond = testing::MakeDirectory(Path(PageChain::kMaxDepth));
  EXPECT_THAT(ErrorOf(beyond.get()), HasSubstr("longer than 4096"));
}

// Each directory holds one page that the next ones need: more descriptors than the soft limit.
TEST_F(PageChainTest, FollowsAThousandParentsWhateverTheSoftLimit) {
  constexpr uint64_t kDepth = 1000;
  for (uint64_t i = 0; i < kDepth; ++i) {
    std::vector<PagemapEntry> entries = {{0x1000 + i * 4096, 1, 4}};
    if (i > 0) entries.insert(entries.begin(), {0x1000, i, 1});
    const auto fd = MakeImages(Path(static_cast<int>(i)), entries, static_cast<unsigned>(i) % 16);
    if (i > 0) LinkParent(fd.get(), absl::StrCat("../", i - 1));
  }
  struct rlimit before;
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  if (before.rlim_max < kDepth + 100) GTEST_SKIP() << "the hard limit of open files is too low";
  struct rlimit low = before;
  low.rlim_cur = 256;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);
  const auto last = testing::MakeDirectory(Path(kDepth - 1));
  const absl::StatusOr<PageChain> chain = PageChain::Open(last.get(), kTask);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  ASSERT_TRUE(chain.ok()) << chain.status();
  for (uint64_t i = 0; i < kDepth; ++i) {
    ASSERT_EQ(ByteAt(*chain, 0x1000 + i * 4096), MarkOf(static_cast<unsigned>(i) % 16, 0)) << i;
  }
}

// 1 GiB whose every second page is in the parent. Linear: a fraction of a second; with a search of
// the parent from its start for each page it would be minutes.
TEST_F(PageChainTest, IsLinearInTheEntries) {
  constexpr uint64_t kEntries = 262144;
  std::vector<PagemapEntry> old_entries;
  std::vector<PagemapEntry> new_entries;
  for (uint64_t i = 0; i < kEntries; ++i) {
    old_entries.push_back({0x100000 + i * 4096, 1, i % 3 == 0 ? 6u : 4u});
    new_entries.push_back({0x100000 + i * 4096, 1, i % 2 == 0 ? 1u : 4u});
  }
  const auto parent = testing::MakeDirectory(Path(1));
  const auto child = testing::MakeDirectory(Path(2));
  LinkParent(child.get(), "../1");
  testing::WriteEntries(parent.get(), old_entries);
  testing::WriteEntries(child.get(), new_entries);
  for (const int fd : {parent.get(), child.get()}) {  // sparse
    const base::UniqueFd pages(::openat(fd, "pages-1.img", O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
    ASSERT_EQ(::ftruncate(pages.get(), kEntries * 4096), 0);
  }
  const absl::Time start = absl::Now();
  const absl::StatusOr<PageChain> chain = PageChain::Open(child.get(), kTask);
  const absl::Duration taken = absl::Now() - start;
  ASSERT_TRUE(chain.ok()) << chain.status();
  EXPECT_EQ(chain->runs().size(), kEntries);
  EXPECT_LT(taken, absl::Seconds(20)) << "on whatever machine, however loaded";
  const StoredRun* run = chain->Find(0x100000 + 1000 * 4096 + 5);
  ASSERT_NE(run, nullptr);
  EXPECT_EQ(run->offset, 1000u * 4096);
}

}  // namespace
}  // namespace predump::images
