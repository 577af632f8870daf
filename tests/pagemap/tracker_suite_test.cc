// What every tracker promises (src/pagemap/dirty_tracker.h, DESIGN 5), run over each of them.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/errors.h"
#include "src/pagemap/dirty_tracker.h"
#include "tests/pagemap/tracker_fixture.h"

namespace predump::pagemap {
namespace {

using ::testing::IsEmpty;

TEST_P(TrackerTest, ReportsOnlyWhatWasWrittenSinceTheLastScan) {
  actor_.Map(kBase, 64 * kPage);
  actor_.Write(kBase, 64 * kPage, 1);
  mover_->ScanAndSend();
  actor_.Write(kBase + 3 * kPage, kPage, 2);
  actor_.Write(kBase + 9 * kPage, 2 * kPage, 2);
  const Mover::Round round = mover_->ScanAndSend();
  if (incremental()) {
    ExtentSet range;
    range.Add(Range(kBase, 64 * kPage));
    EXPECT_EQ(round.dirty.pages.Intersection(range),
              ExtentSet::FromUnsorted(
                  {Range(kBase + 3 * kPage, kPage), Range(kBase + 9 * kPage, 2 * kPage)}));
  }
  ExpectSent(mover_->ScanAndSend(), Range(kBase, 64 * kPage), 0);
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

constexpr uint64_t kWrittenOnce = 16384;

// Writes each page once, one after the other, slowly enough for many scans to fall in between.
int64_t WriteNextPage(const MemoryActor::Arguments& a) {
  for (uint64_t i = 0; i < a[0]; ++i) asm volatile("");
  if (a[5] < kWrittenOnce) *reinterpret_cast<volatile uint64_t*>(kBase + a[5] * kPage) = 1;
  return 0;
}

// A write that fell between finding and resetting would never be told, since its page is not
// written again: one step, or a freeze over both.
TEST_P(TrackerTest, NoWriteIsLostBetweenFindingAndResetting) {
  actor_.Map(kBase, kWrittenOnce * kPage);
  actor_.Write(kBase, kWrittenOnce * kPage, 9);
  const auto vmas = VmaList::Read(actor_.process(), false);
  ASSERT_TRUE(vmas.ok());
  ASSERT_TRUE(ScanAndReset(*vmas).ok());
  ExtentSet reported;
  // One that is frozen in each scan gets to write between them only.
  const bool freezes = tracker_->needs_freeze();
  actor_.StartLoop(WriteNextPage, {freezes ? 100u : 20'000u});
  bool written = false;
  while (!written) {
    const uint64_t before = actor_.loops_done();
    while (freezes && actor_.loops_done() < before + 150) std::this_thread::yield();
    written = actor_.loops_done() > kWrittenOnce;  // asked first: one more scan sees the last
    const auto dirty = ScanAndReset(*vmas);
    ASSERT_TRUE(dirty.ok()) << dirty.status();
    reported.AddAll(dirty->pages);
  }
  actor_.StopLoop();
  EXPECT_EQ(PagesIn(reported, Range(kBase, kWrittenOnce * kPage)), kWrittenOnce);
}

TEST_P(TrackerTest, ReplacedMappingIsResentWhole) {
  actor_.Map(kBase, 8 * kMiB);
  actor_.Write(kBase, 8 * kMiB, 1);
  mover_->ScanAndSend();
  actor_.Unmap(kBase, 8 * kMiB);
  actor_.Map(kBase, 8 * kMiB);
  ASSERT_EQ(actor_.Syscall(SYS_madvise, {kBase, 8 * kMiB, MADV_NOHUGEPAGE}), 0);
  actor_.Write(kBase, kPage, 2);
  const Mover::Round round = mover_->ScanAndSend();
  EXPECT_EQ(PagesIn(round.dirty.drop, Range(kBase, 8 * kMiB)), 8 * kMiB / kPage - 1);
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

TEST_P(TrackerTest, AMappingReplacedAfterTheLastRoundIsFoundAtTheFreeze) {
  actor_.Map(kBase, 8 * kMiB);
  actor_.Write(kBase, 8 * kMiB, 1);
  mover_->ScanAndSend();
  actor_.Unmap(kBase, 8 * kMiB);
  actor_.Map(kBase, 8 * kMiB);
  actor_.Write(kBase, kPage, 2);
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

TEST_P(TrackerTest, ANewMappingThatMergesWithAnOldOneIsSent) {
  actor_.Map(kBase, 16 * kPage);
  actor_.Write(kBase, 16 * kPage, 1);
  mover_->ScanAndSend();
  actor_.Map(kBase + 16 * kPage, 16 * kPage);  // one mapping of 32 pages now
  actor_.Write(kBase + 20 * kPage, 2 * kPage, 2);
  const Mover::Round round = mover_->ScanAndSend();
  EXPECT_EQ(PagesIn(round.dirty.pages, Range(kBase + 16 * kPage, 16 * kPage)), 2u);
  actor_.Write(kBase + 3 * kPage, kPage, 3);
  actor_.Write(kBase + 25 * kPage, kPage, 3);
  ExpectSent(mover_->ScanAndSend(), Range(kBase, 32 * kPage), 2);
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

TEST_P(TrackerTest, AGrownMappingIsFollowedInItsNewPart) {
  actor_.Map(kBase, 64 * kPage);
  actor_.Write(kBase, 64 * kPage, 1);
  mover_->ScanAndSend();
  ASSERT_EQ(actor_.Syscall(SYS_mremap, {kBase, 64 * kPage, 80 * kPage, 0}),
            static_cast<int64_t>(kBase));
  actor_.Write(kBase + 70 * kPage, 2 * kPage, 2);
  ExpectSent(mover_->ScanAndSend(), Range(kBase, 80 * kPage), 2);
  actor_.Unmap(kBase, 8 * kPage);
  actor_.Protect(kBase + 40 * kPage, 8 * kPage, PROT_READ);
  ExpectSent(mover_->ScanAndSend(), Range(kBase, 80 * kPage), 0);
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

TEST_P(TrackerTest, MovedMappingIsSentAndFollowed) {
  actor_.Map(kBase, 16 * kPage);
  actor_.Write(kBase, 16 * kPage, 1);
  mover_->ScanAndSend();
  actor_.Move(kBase, 16 * kPage, kElsewhere);
  EXPECT_EQ(PagesIn(mover_->ScanAndSend().dirty.pages, Range(kElsewhere, 16 * kPage)), 16u);
  actor_.Write(kElsewhere + kPage, kPage, 2);
  ExpectSent(mover_->ScanAndSend(), Range(kElsewhere, 16 * kPage), 1);
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

TEST_P(TrackerTest, AMappingThatMovesBackAndMergesIsFollowed) {
  actor_.Map(kBase, 64 * kPage);
  actor_.Write(kBase, 64 * kPage, 1);
  mover_->ScanAndSend();
  actor_.Move(kBase + 32 * kPage, 32 * kPage, kElsewhere);
  mover_->ScanAndSend();
  actor_.Move(kElsewhere, 32 * kPage, kBase + 32 * kPage);  // joins with the lower half
  actor_.Write(kBase + 3 * kPage, kPage, 2);
  mover_->ScanAndSend();
  actor_.Write(kBase + 3 * kPage, kPage, 3);
  ExpectSent(mover_->ScanAndSend(), Range(kBase, 64 * kPage), 1);
  actor_.Write(kBase + 3 * kPage, kPage, 4);
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

// mremap(2) moves page tables, not pages, where both places are congruent modulo 2 MiB.
TEST_P(TrackerTest, WholePageTablesMovedOverMemoryThatWasSentAreSent) {
  for (const uint64_t at : {kBase, kElsewhere}) {
    actor_.Map(at, 8 * kMiB);
    ASSERT_EQ(actor_.Syscall(SYS_madvise, {at, 8 * kMiB, MADV_NOHUGEPAGE}), 0);
    actor_.Write(at, 8 * kMiB, at);
  }
  mover_->ScanAndSend();
  actor_.Move(kBase + 2 * kMiB, 2 * kMiB, kElsewhere + 4 * kMiB);
  EXPECT_GE(PagesIn(mover_->ScanAndSend().dirty.pages, Range(kElsewhere + 4 * kMiB, 2 * kMiB)),
            2 * kMiB / kPage);
  ExpectSent(mover_->ScanAndSend(), Range(kElsewhere, 8 * kMiB), 0);
  actor_.Move(kBase + 4 * kMiB, 2 * kMiB, kElsewhere + 2 * kMiB);
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

// The layout is the same before and after, and neither place is ever without memory at a scan.
TEST_P(TrackerTest, MemoryThatChangesPlacesIsSent) {
  const uint64_t spare = kElsewhere + 64 * kMiB;
  for (const uint64_t at : {kBase, kElsewhere}) {
    actor_.Map(at, 4 * kMiB);
    ASSERT_EQ(actor_.Syscall(SYS_madvise, {at, 4 * kMiB, MADV_NOHUGEPAGE}), 0);
    actor_.Write(at, 4 * kMiB, at);
  }
  mover_->ScanAndSend();
  mover_->ScanAndSend();
  actor_.Move(kBase, 4 * kMiB, spare);
  actor_.Move(kElsewhere, 4 * kMiB, kBase);
  actor_.Move(spare, 4 * kMiB, kElsewhere);
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

TEST_P(TrackerTest, DiscardedPagesAreDroppedInTheNextRound) {
  actor_.Map(kBase, 64 * kPage);
  actor_.Write(kBase, 64 * kPage, 1);
  mover_->ScanAndSend();
  actor_.Discard(kBase + 8 * kPage, 4 * kPage);
  const Mover::Round round = mover_->ScanAndSend();
  EXPECT_EQ(PagesIn(round.dirty.drop, Range(kBase, 64 * kPage)), 4u);
  EXPECT_FALSE(mover_->mirror().Holds(kBase + 8 * kPage));
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

TEST_P(TrackerTest, PagesDiscardedAfterTheLastRoundAreDroppedAtTheFreeze) {
  actor_.Map(kBase, 64 * kPage);
  actor_.Write(kBase, 64 * kPage, 1);
  mover_->ScanAndSend();
  actor_.Discard(kBase + 8 * kPage, 4 * kPage);
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

TEST_P(TrackerTest, PagesDiscardedAndReadAgainAreZeroAtTheTarget) {
  actor_.Map(kBase, 64 * kPage);
  actor_.Write(kBase, 64 * kPage, 1);
  mover_->ScanAndSend();
  actor_.Discard(kBase + 8 * kPage, 4 * kPage);
  actor_.Read(kBase + 8 * kPage);  // the zero page is present now
  const Mover::Round round = mover_->ScanAndSend();
  if (tells_zero_pages()) {
    ExpectSent(round, Range(kBase, 64 * kPage), 0);
  }
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

TEST_P(TrackerTest, HugePagesDiscardedAndReadAgainAreZeroAtTheTarget) {
  actor_.Map(kBase, 8 * kMiB);
  ASSERT_EQ(actor_.Syscall(SYS_madvise, {kBase, 8 * kMiB, MADV_HUGEPAGE}), 0);
  actor_.Write(kBase, 8 * kMiB, 1);
  mover_->ScanAndSend();
  actor_.Discard(kBase + 2 * kMiB, 4 * kMiB);
  actor_.Read(kBase + 3 * kMiB);  // a huge zero page, where the kernel uses it
  mover_->ScanAndSend();
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

TEST_P(TrackerTest, DiscardedPrivateFilePagesAreTheFilesAgain) {
  actor_.MapFile(MakeFile(temp_, 16).c_str(), kBase, 16 * kPage, MAP_PRIVATE);
  actor_.Write(kBase, 8 * kPage, 1);
  mover_->ScanAndSend();
  ASSERT_TRUE(mover_->mirror().Holds(kBase));
  actor_.Discard(kBase, 4 * kPage);
  mover_->ScanAndSend();
  actor_.Read(kBase + kPage);  // one of them is a page of the file again
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

TEST_P(TrackerTest, PrivateFilePagesAreSentOnlyOnceWritten) {
  actor_.MapFile(MakeFile(temp_, 16).c_str(), kBase, 16 * kPage, MAP_PRIVATE);
  for (int i = 0; i < 16; ++i) actor_.Read(kBase + i * kPage);
  EXPECT_EQ(PagesIn(mover_->ScanAndSend().dirty.pages, Range(kBase, 16 * kPage)), 0u);
  actor_.Write(kBase + 5 * kPage, kPage, 1);
  EXPECT_EQ(PagesIn(mover_->ScanAndSend().dirty.pages, Range(kBase, 16 * kPage)), 1u);
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

TEST_P(TrackerTest, ZeroPagesAreNotSent) {
  actor_.Map(kBase, 16 * kPage);
  for (int i = 0; i < 16; ++i) actor_.Read(kBase + i * kPage);
  const uint64_t sent = PagesIn(mover_->ScanAndSend().dirty.pages, Range(kBase, 16 * kPage));
  EXPECT_EQ(sent, tells_zero_pages() ? 0u : 16u);
}

// The landing maps it anew in the second round, so what was sent in the first is lost there.
TEST_P(TrackerTest, WhatTheLandingMapsAnewIsSentWhole) {
  const std::string path = MakeFile(temp_, 16);
  actor_.Map(kBase, 16 * kPage);
  actor_.Write(kBase, 16 * kPage, 1);
  mover_->ScanAndSend();
  mover_->ScanAndSend([&] {
    actor_.MapFile(path.c_str(), kBase, 16 * kPage, MAP_PRIVATE);
    actor_.Write(kBase, 2 * kPage, 2);
  });
  mover_->ScanAndSend();
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

TEST_P(TrackerTest, WritesByTheKernelAreReported) {
  actor_.Map(kBase, 16 * kPage);
  actor_.Write(kBase, 16 * kPage, 1);
  mover_->ScanAndSend();
  ASSERT_EQ(actor_.Syscall(SYS_getrandom, {kBase + 4 * kPage, 2 * kPage, 0}),
            static_cast<int64_t>(2 * kPage));
  ExpectSent(mover_->ScanAndSend(), Range(kBase, 16 * kPage), 2);
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

TEST_P(TrackerTest, HugePagesAreFollowed) {
  actor_.Map(kBase, 8 * kMiB);
  ASSERT_EQ(actor_.Syscall(SYS_madvise, {kBase, 8 * kMiB, MADV_HUGEPAGE}), 0);
  actor_.Write(kBase, 8 * kMiB, 1);
  mover_->ScanAndSend();
  actor_.Write(kBase + 3 * kMiB, kPage, 2);
  const Mover::Round round = mover_->ScanAndSend();
  // One page, or the huge page it is in.
  EXPECT_GE(PagesIn(round.dirty.pages, Range(kBase + 3 * kMiB, kPage)), 1u);
  if (incremental()) {
    EXPECT_LE(PagesIn(round.dirty.pages, Range(kBase, 8 * kMiB)), 2 * kMiB / kPage);
  }
  actor_.Discard(kBase + 4 * kMiB, 2 * kMiB);
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

TEST_P(TrackerTest, FinalScanResetsNothing) {
  actor_.Map(kBase, 16 * kPage);
  actor_.Write(kBase, 16 * kPage, 1);
  mover_->ScanAndSend();
  actor_.Write(kBase, kPage, 2);
  EXPECT_THAT(mover_->Finish(), IsEmpty());
  actor_.Write(kBase + kPage, kPage, 2);
  // The freeze was called off: the next round has both.
  ExpectSent(mover_->ScanAndSend(), Range(kBase, 16 * kPage), 2);
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

// What was reset and not reported is not known to be clean.
TEST_P(TrackerTest, AScanThatFailsMidwayMakesTheNextOneWhole) {
  actor_.Map(kBase, 16 * kPage);
  actor_.Write(kBase, 16 * kPage, 1);
  mover_->ScanAndSend();
  actor_.Write(kBase + 3 * kPage, kPage, 2);
  const auto vmas = VmaList::Read(actor_.process(), false);
  ASSERT_TRUE(vmas.ok());
  // The last mapping lies where no process has any: the scan of it is an error of the kernel's.
  std::vector<Vma> with_nonsense = vmas->vmas();
  Vma& nonsense = with_nonsense.emplace_back();
  nonsense.kind = VmaKind::kAnonymousPrivate;
  nonsense.range = Range(0xffff800000000000, 16 * kPage);
  const bool fails = !ScanAndReset(VmaList(std::move(with_nonsense))).ok();
  // Plain reads find nothing there, which is no error.
  EXPECT_NE(fails, absl::EndsWith(GetParam(), "_entries"));
  if (!fails) return;
  const auto dirty = ScanAndReset(*vmas);
  ASSERT_TRUE(dirty.ok()) << dirty.status();
  EXPECT_EQ(PagesIn(dirty->pages, Range(kBase, 16 * kPage)), 16u);
}

TEST_P(TrackerTest, DroppedPagesAreOnlyThoseTheTargetHolds) {
  actor_.Map(kBase, 1024 * kPage);
  actor_.Write(kBase, kPage, 1);
  EXPECT_TRUE(mover_->ScanAndSend().dirty.drop.empty());
  EXPECT_TRUE(mover_->ScanAndSend().dirty.drop.empty());
}

TEST_P(TrackerTest, AnExitedProcessIsReportedAsSuch) {
  const auto vmas = VmaList::Read(actor_.process(), false);
  ASSERT_TRUE(vmas.ok());
  ASSERT_TRUE(ScanAndReset(*vmas).ok());
  actor_.Kill();
  EXPECT_TRUE(base::IsTargetExited(tracker_->ScanAndReset(*vmas).status()));
  EXPECT_TRUE(base::IsTargetExited(tracker_->FinalScan(*vmas).status()));
  EXPECT_TRUE(tracker_->Disarm().ok());
  EXPECT_TRUE(tracker_->Disarm().ok());
}

INSTANTIATE_TEST_SUITE_P(Trackers, TrackerTest,
                         testing::Values("uffd_wp", "soft_dirty", "soft_dirty_entries", "full",
                                         "full_entries"),
                         [](const auto& param_info) { return param_info.param; });

}  // namespace
}  // namespace predump::pagemap
