// What is the soft-dirty tracker's own: what its marks do not show, and who else may reset them.
#include "src/pagemap/soft_dirty_tracker.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/errors.h"
#include "src/kernel/clear_refs.h"
#include "src/kernel/pagemap_scan.h"
#include "src/pagemap/readv_source.h"
#include "tests/pagemap/tracker_fixture.h"

namespace predump::pagemap {
namespace {

using ::testing::Contains;
using ::testing::Field;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

auto Because(const char* reason) { return Field(&FullResend::reason, HasSubstr(reason)); }

// Through both ways of looking at pages.
class SoftDirtyTrackerTest : public TrackerTest {
 protected:
  void ResetAsSomebodyElse() {
    const auto clear = kernel::ClearRefs::Open(actor_.process());
    ASSERT_TRUE(clear.ok()) << clear.status();
    ASSERT_TRUE(clear->ResetSoftDirty().ok());
  }
};

TEST_P(SoftDirtyTrackerTest, NeedsAFreeze) { EXPECT_TRUE(tracker_->needs_freeze()); }

// DESIGN 5: one bit for all who use it.
TEST_P(SoftDirtyTrackerTest, AForeignResetMakesTheNextRoundWhole) {
  actor_.Map(kBase, 64 * kPage);
  actor_.Write(kBase, 64 * kPage, 1);
  mover_->ScanAndSend();
  actor_.Write(kBase + 5 * kPage, kPage, 2);
  ResetAsSomebodyElse();
  const Mover::Round round = mover_->ScanAndSend();
  EXPECT_EQ(PagesIn(round.dirty.pages, Range(kBase, 64 * kPage)), 64u);
  EXPECT_THAT(tracker_->full_resends(), Contains(Because("somebody else reset")));
  // Over with that round.
  EXPECT_EQ(PagesIn(mover_->ScanAndSend().dirty.pages, Range(kBase, 64 * kPage)), 0u);
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

TEST_P(SoftDirtyTrackerTest, AForeignResetBeforeTheFreezeMakesTheLastRoundWhole) {
  actor_.Map(kBase, 64 * kPage);
  actor_.Write(kBase, 64 * kPage, 1);
  mover_->ScanAndSend();
  actor_.Write(kBase + 5 * kPage, kPage, 2);
  ResetAsSomebodyElse();
  EXPECT_THAT(mover_->Finish(), IsEmpty());
  EXPECT_THAT(tracker_->full_resends(), Contains(Because("somebody else reset")));
}

// The pages that tell of it are not those that a process writes all the time.
TEST_P(SoftDirtyTrackerTest, AForeignResetIsNoticedWhateverTheProcessWritesAfterIt) {
  actor_.Map(kBase, 64 * kPage);
  actor_.Write(kBase, 64 * kPage, 1);
  mover_->ScanAndSend();
  actor_.Write(kBase + 5 * kPage, kPage, 2);
  ResetAsSomebodyElse();
  actor_.Write(kBase + 6 * kPage, 50 * kPage, 3);
  actor_.Call([](const MemoryActor::Arguments&) -> int64_t {
    char deep[64 << 10];  // the stack, too
    for (size_t i = 0; i < sizeof(deep); i += kPage) static_cast<volatile char*>(deep)[i] = 1;
    return 0;
  });
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

TEST_P(SoftDirtyTrackerTest, TheWitnessesOfAResetChangeNothing) {
  actor_.Map(kBase, 64 * kPage);
  actor_.Write(kBase, 64 * kPage, 1);
  mover_->ScanAndSend();
  EXPECT_EQ(PagesIn(mover_->ScanAndSend().dirty.pages, Range(kBase, 64 * kPage)), 0u);
  EXPECT_THAT(tracker_->full_resends(), Not(Contains(Because("somebody else reset"))));
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

class WholeTablesTest : public SoftDirtyTrackerTest {
 protected:
  void SetUp() override {
    SoftDirtyTrackerTest::SetUp();
    if (IsSkipped()) return;
    for (const uint64_t at : {kBase, kElsewhere}) {
      actor_.Map(at, 8 * kMiB);
      ASSERT_EQ(actor_.Syscall(SYS_madvise, {at, 8 * kMiB, MADV_NOHUGEPAGE}), 0);
      actor_.Write(at, 8 * kMiB, at);
    }
    mover_->ScanAndSend();
  }
};

// The hazard itself: were the kernel to mark what it moves, MovedTables could go.
TEST_P(WholeTablesTest, TheKernelMarksNoneOfTheirPages) {
  actor_.Move(kBase + 2 * kMiB, 2 * kMiB, kElsewhere + 4 * kMiB);
  const auto pagemap = kernel::PagemapFile::Open(actor_.process());
  ASSERT_TRUE(pagemap.ok());
  uint64_t entry = 0;
  ASSERT_TRUE(pagemap->ReadEntries(Range(kElsewhere + 5 * kMiB, kPage), std::span(&entry, 1)).ok());
  EXPECT_EQ(entry & kernel::kPagemapSoftDirty, 0u);
}

TEST_P(WholeTablesTest, OnlyDoubtfulOnesAreSentAgain) {
  actor_.Move(kBase + 2 * kMiB, 2 * kMiB, kElsewhere + 4 * kMiB);
  const Mover::Round round = mover_->ScanAndSend();
  EXPECT_EQ(PagesIn(round.dirty.pages, Range(kElsewhere, 8 * kMiB)), 2 * kMiB / kPage);
  EXPECT_THAT(tracker_->full_resends(), Contains(Because("mremap")));
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

TEST_P(WholeTablesTest, ATableIsKnownByAnyOfItsPages) {
  actor_.Write(kBase, 500 * kPage, 2);  // most of one table
  const Mover::Round round = mover_->ScanAndSend();
  EXPECT_EQ(PagesIn(round.dirty.pages, Range(kBase, 8 * kMiB)), 500u);
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

// Discards page after page at a[0] and writes the one that will take its place, at a[1], which then
// gets the frame that has just become free.
int64_t TakeOverFrames(const MemoryActor::Arguments& a) {
  for (uint64_t page = 0; page < 512; ++page) {
    if (page % 8 != 0 && page != 511 && page != 170 && page != 340 && page != 341) continue;
    ::madvise(reinterpret_cast<void*>(a[1] + page * kPage), kPage, MADV_DONTNEED);
    ::madvise(reinterpret_cast<void*>(a[0] + page * kPage), kPage, MADV_DONTNEED);
    *reinterpret_cast<volatile uint64_t*>(a[1] + page * kPage) = a[2];
  }
  return 0;
}

// A new page may get the frame that a page at the same place had: its mark says that it is new.
TEST_P(WholeTablesTest, AFrameThatIsUsedAgainIsNotTakenForThePageThatWasThere) {
  const auto pagemap = kernel::PagemapFile::Open(actor_.process());
  ASSERT_TRUE(pagemap.ok());
  const auto frames = [&](uint64_t at) {
    std::vector<uint64_t> entries(512);
    EXPECT_TRUE(pagemap->ReadEntries(Range(at, 2 * kMiB), entries).ok());
    for (uint64_t& entry : entries) entry &= kernel::kPagemapFrame;
    return entries;
  };
  int met = 0;
  for (int i = 0; i < 4; ++i) {
    const uint64_t to = kElsewhere + i * 2 * kMiB;
    const uint64_t from = kBase + i * 2 * kMiB;
    const std::vector<uint64_t> before = frames(to);
    actor_.Call(TakeOverFrames, {to, from, 7});
    actor_.Move(from, 2 * kMiB, to);
    const std::vector<uint64_t> after = frames(to);
    // The first page of a table is one of those that are remembered.
    if (before[0] == after[0] || before[511] == after[511]) ++met;
    EXPECT_THAT(mover_->Finish(), IsEmpty());
  }
  EXPECT_GT(met, 0) << "no page got the frame this test is about";
}

INSTANTIATE_TEST_SUITE_P(Ways, SoftDirtyTrackerTest,
                         testing::Values("soft_dirty", "soft_dirty_entries"),
                         [](const auto& param_info) { return param_info.param; });
INSTANTIATE_TEST_SUITE_P(Ways, WholeTablesTest, testing::Values("soft_dirty", "soft_dirty_entries"),
                         [](const auto& param_info) { return param_info.param; });

}  // namespace
}  // namespace predump::pagemap
