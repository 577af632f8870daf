// What is this tracker's own; tracker_suite_test.cc has what every tracker promises. Each test
// stands on one rule of DESIGN 5 or one fact of DESIGN 12, and fails without its remedy.
#include "src/pagemap/uffd_wp_tracker.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <memory>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/errors.h"
#include "src/kernel/pagemap_scan.h"
#include "src/kernel/process_memory.h"
#include "src/pagemap/readv_source.h"
#include "tests/pagemap/tracker_fixture.h"

namespace predump::pagemap {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class UffdWpTrackerTest : public testing::Test {
 protected:
  void SetUp() override { MakeTracker({}); }

  void MakeTracker(const UffdWpOptions& options) {
    tracker_.reset();
    auto tracker = UffdWpTracker::Create(actor_.process(), UserfaultfdOf(actor_), options);
    ASSERT_TRUE(tracker.ok()) << tracker.status();
    tracker_ = *std::move(tracker);
    auto source = ReadvSource::Create(actor_.process());
    ASSERT_TRUE(source.ok()) << source.status();
    source_ = *std::move(source);
    mover_ = std::make_unique<Mover>(actor_, *tracker_, *source_);
  }

  uint64_t PagemapEntry(uint64_t address) {
    const auto pagemap = kernel::PagemapFile::Open(actor_.process());
    EXPECT_TRUE(pagemap.ok());
    uint64_t entry = 0;
    const auto count = pagemap->ReadEntries(Range(address, kPage), std::span(&entry, 1));
    EXPECT_TRUE(count.ok() && *count == 1);
    return entry;
  }

  // In KiB, from /proc/PID/status.
  uint64_t PageTableKiB() {
    std::ifstream status(absl::StrCat("/proc/", actor_.pid(), "/status"));
    std::string word;
    uint64_t kib = 0;
    while (status >> word) {
      if (word == "VmPTE:") status >> kib;
    }
    return kib;
  }

  // The line of smaps that begins with `field`, for the mapping at `address`.
  std::string SmapsLine(const std::string& field, uint64_t address) {
    std::ifstream smaps(absl::StrCat("/proc/", actor_.pid(), "/smaps"));
    std::string line;
    bool inside = false;
    while (std::getline(smaps, line)) {
      unsigned long start = 0;
      unsigned long end = 0;
      if (sscanf(line.c_str(), "%lx-%lx ", &start, &end) == 2) {
        inside = start <= address && address < end;
      } else if (inside && line.rfind(field, 0) == 0) {
        return line;
      }
    }
    return "";
  }

  std::string VmFlagsAt(uint64_t address) { return SmapsLine("VmFlags:", address); }
  uint64_t SmapsKiB(const std::string& field, uint64_t address) {
    const std::string line = SmapsLine(field, address);
    return line.empty() ? 0 : std::stoull(line.substr(field.size()));
  }

  // KiB of huge pages of the mapping at `address`. The kernel gives huge pages at once only where
  // free memory lies together; on a machine that has run for a while it has to move pages first.
  uint64_t CollapseIntoHugePages(uint64_t address, uint64_t bytes) {
    constexpr uint64_t kMadvCollapse = 25;  // Linux 6.1; glibc 2.36 does not name it
    if (SmapsKiB("AnonHugePages:", address) < bytes / 1024 / 2) {
      std::ofstream("/proc/sys/vm/compact_memory") << "1";
      EXPECT_EQ(actor_.Syscall(SYS_madvise, {address, bytes, kMadvCollapse}), 0)
          << "no huge pages to be had";
    }
    return SmapsKiB("AnonHugePages:", address);
  }

  test_support::TempDir temp_ = *test_support::TempDir::Create();
  MemoryActor actor_;
  std::unique_ptr<UffdWpTracker> tracker_;
  std::unique_ptr<ReadvSource> source_;
  std::unique_ptr<Mover> mover_;
};

// DESIGN 12.1.
TEST_F(UffdWpTrackerTest, EpermMidwayResendsWholeVma) {
  actor_.Map(kBase, 32 * kPage);
  actor_.Write(kBase, 32 * kPage, 1);
  mover_->ScanAndSend();
  // The scan resets page 2, which was written, before it meets the new mapping at page 16.
  mover_->ScanAndSend([&] {
    actor_.Write(kBase + 2 * kPage, kPage, 2);
    actor_.Map(kBase + 16 * kPage, 4 * kPage);
    actor_.Write(kBase + 17 * kPage, kPage, 3);
  });
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

// DESIGN 12.1: the mapping that replaced part of it is followed from then on.
TEST_F(UffdWpTrackerTest, EpermMidwayArmsTheNewPart) {
  actor_.Map(kBase, 32 * kPage);
  actor_.Write(kBase, 32 * kPage, 1);
  mover_->ScanAndSend();
  mover_->ScanAndSend([&] {
    actor_.Map(kBase + 16 * kPage, 4 * kPage);
    actor_.Write(kBase + 16 * kPage, 4 * kPage, 3);
  });
  actor_.Write(kBase + 18 * kPage, kPage, 4);
  const Mover::Round round = mover_->ScanAndSend();
  EXPECT_EQ(PagesIn(round.dirty.pages, Range(kBase, 32 * kPage)), 1u);
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

// DESIGN 12.2.
TEST_F(UffdWpTrackerTest, FinalScanDropsUnregisteredMappingWithoutPageTables) {
  actor_.Map(kBase, 8 * kMiB);
  actor_.Write(kBase, 8 * kMiB, 1);
  mover_->ScanAndSend();
  // New, at the same place: all but its first 2 MiB has no page table, so nothing there counts as
  // written, though the target still holds what was sent.
  actor_.Unmap(kBase, 8 * kMiB);
  actor_.Map(kBase, 8 * kMiB);
  actor_.Write(kBase, kPage, 2);
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

// DESIGN 12.3.
TEST_F(UffdWpTrackerTest, MergedMappingIsReRegisteredSoThatLaterWritesAreSeen) {
  actor_.Map(kBase, 64 * kPage);
  actor_.Write(kBase, 64 * kPage, 1);
  mover_->ScanAndSend();
  actor_.Move(kBase + 32 * kPage, 32 * kPage, kElsewhere);
  mover_->ScanAndSend();
  actor_.Move(kElsewhere, 32 * kPage, kBase + 32 * kPage);  // joins with the lower half
  actor_.Write(kBase + 3 * kPage, kPage, 2);
  mover_->ScanAndSend();
  // Its mark outlived the registration: without unregistering, this write is never reported.
  actor_.Write(kBase + 3 * kPage, kPage, 3);
  EXPECT_EQ(PagesIn(mover_->ScanAndSend().dirty.pages, Range(kBase, 64 * kPage)), 1u);
  actor_.Write(kBase + 3 * kPage, kPage, 4);
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

// DESIGN 12.3, marks left by an earlier tracker whose process runs on.
TEST_F(UffdWpTrackerTest, MarksLeftByAnEarlierTrackerAreRemoved) {
  actor_.Map(kBase, 64 * kPage);
  actor_.Write(kBase, 64 * kPage, 1);
  mover_->ScanAndSend();
  actor_.Move(kBase + 32 * kPage, 32 * kPage, kElsewhere);
  mover_->ScanAndSend();
  actor_.Move(kElsewhere, 32 * kPage, kBase + 32 * kPage);
  actor_.Write(kBase + 3 * kPage, kPage, 2);
  MakeTracker({});
  mover_->ScanAndSend();
  actor_.Write(kBase + 3 * kPage, kPage, 3);
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

// Discards one private page of the file after the other and writes it again.
int64_t DiscardAndWrite(const MemoryActor::Arguments& a) {
  const uint64_t page = kBase + a[5] % 4096 * kPage;
  ::madvise(reinterpret_cast<void*>(page), kPage, MADV_DONTNEED);
  *reinterpret_cast<volatile uint64_t*>(page) = 1;
  return 0;
}

// A write to a discarded page of a file mapping takes two faults: one makes a private copy that is
// still marked as protected, the next lifts the mark. A freeze between the two finds a page that
// nothing reports, with the contents of the file, where the target holds what was written before.
TEST_F(UffdWpTrackerTest, APrivateCopyNotYetWrittenIsFoundAtTheFreeze) {
  actor_.MapFile(MakeFile(temp_, 4096).c_str(), kBase, 4096 * kPage, MAP_PRIVATE);
  actor_.Write(kBase, 4096 * kPage, 1);
  const auto pagemap = kernel::PagemapFile::Open(actor_.process());
  const auto memory = kernel::ProcessMemory::Open(actor_.process(), O_RDONLY);
  ASSERT_TRUE(pagemap.ok() && memory.ok());
  std::vector<uint64_t> entries(4096);
  int met = 0;
  for (int freeze = 0; freeze < 2000 && met < 3; ++freeze) {
    const auto vmas = VmaList::Read(actor_.process(), false);
    ASSERT_TRUE(vmas.ok());
    actor_.StartLoop(DiscardAndWrite);
    ASSERT_TRUE(tracker_->ScanAndReset(*vmas).ok());
    actor_.Freeze();
    const auto last = tracker_->FinalScan(*vmas);
    ASSERT_TRUE(last.ok());
    ASSERT_TRUE(pagemap->ReadEntries(Range(kBase, 4096 * kPage), entries).ok());
    for (uint64_t i = 0; i < 4096; ++i) {
      const bool copy = (entries[i] & kernel::kPagemapPresent) != 0 &&
                        (entries[i] & kernel::kPagemapFileOrShared) == 0;
      if (!copy) continue;
      // The write changes the first word only: equal to the second, it has not happened.
      const base::RemoteAddress page(kBase + i * kPage);
      uint64_t words[2];
      ASSERT_TRUE(memory->ReadExactly(page, std::as_writable_bytes(std::span(words))).ok());
      if (words[0] != words[1]) continue;
      ++met;
      EXPECT_TRUE(last->drop.Contains(page) || last->pages.Contains(page)) << "page " << i;
    }
    actor_.Thaw();
    actor_.StopLoop();
  }
  EXPECT_GT(met, 0) << "the state this test is about was not met";
}

// DESIGN 5: protecting holes would plant markers that read back as swapped-out pages.
TEST_F(UffdWpTrackerTest, HolesAreLeftUnmarked) {
  actor_.Map(kBase, 16 * kPage);
  actor_.Write(kBase, kPage, 1);
  mover_->ScanAndSend();
  actor_.Discard(kBase, kPage);
  mover_->ScanAndSend();
  EXPECT_EQ(PagemapEntry(kBase) & (kernel::kPagemapSwapped | kernel::kPagemapUffdWp), 0u);
  EXPECT_EQ(PagemapEntry(kBase + kPage) & (kernel::kPagemapSwapped | kernel::kPagemapUffdWp), 0u);
}

// DESIGN 12.10.
TEST_F(UffdWpTrackerTest, AsksForFileBackingOnlyWhereSomethingWasWritten) {
  actor_.Map(kBase, 64 * kMiB);
  actor_.Write(kBase, 64 * kMiB, 1);
  actor_.MapFile(MakeFile(temp_, 4096).c_str(), kElsewhere, 4096 * kPage, MAP_PRIVATE);
  actor_.Write(kElsewhere, 4096 * kPage, 1);
  mover_->ScanAndSend();
  mover_->ScanAndSend();
  const uint64_t before = tracker_->statistics().scanner.pages_asked_for_file.value();
  EXPECT_LT(before, 64 * kMiB / kPage);  // file mappings only
  actor_.Write(kElsewhere + kPage, kPage, 2);
  actor_.Write(kBase, 64 * kMiB, 2);
  mover_->ScanAndSend();
  EXPECT_LT(tracker_->statistics().scanner.pages_asked_for_file.value() - before, 1024u);
}

// DESIGN 12.11.
TEST_F(UffdWpTrackerTest, SparseReservationGrowsNoPageTables) {
  constexpr uint64_t kReserved = 64ull << 30;
  actor_.Map(kBase, kReserved, MAP_NORESERVE);
  actor_.Write(kBase + (40ull << 30), 16 * kPage, 1);
  const uint64_t before = PageTableKiB();
  const auto vmas = VmaList::Read(actor_.process(), false);
  ASSERT_TRUE(vmas.ok());
  ASSERT_TRUE(tracker_->ScanAndReset(*vmas).ok());
  ASSERT_LT(PageTableKiB(), before + 256);
  MakeTracker({});
  mover_->ScanAndSend();
  actor_.Write(kBase + (50ull << 30), 16 * kPage, 1);
  mover_->ScanAndSend();
  EXPECT_LT(PageTableKiB(), before + 256);
  EXPECT_THAT(mover_->Finish(), IsEmpty());
  EXPECT_LT(PageTableKiB(), before + 256);
}

// DESIGN 12.12.
TEST_F(UffdWpTrackerTest, ProtectsAtMost64MiBUnderOneHoldOfTheMemoryLock) {
  actor_.Map(kBase, 160 * kMiB);
  actor_.Write(kBase, 160 * kMiB, 1);
  const auto vmas = VmaList::Read(actor_.process(), false);
  ASSERT_TRUE(vmas.ok());
  ASSERT_TRUE(tracker_->ScanAndReset(*vmas).ok());
  EXPECT_EQ(tracker_->statistics().scanner.most_pages_in_one_reset.value(), 64 * kMiB / kPage);
}

// DESIGN 12.12, for reservations so large that steps are larger.
TEST_F(UffdWpTrackerTest, LargeReservationsAreProtected64MiBAtATimeToo) {
  actor_.Map(kBase, 256ull << 30, MAP_NORESERVE);
  actor_.Write(kBase, 160 * kMiB, 1);
  const auto vmas = VmaList::Read(actor_.process(), false);
  ASSERT_TRUE(vmas.ok());
  ASSERT_TRUE(tracker_->ScanAndReset(*vmas).ok());
  EXPECT_LE(tracker_->statistics().scanner.most_pages_in_one_reset.value(), 64 * kMiB / kPage);
}

// A step that ended inside a huge page would split it.
TEST_F(UffdWpTrackerTest, StepsCutNoHugePage) {
  actor_.Map(kBase + kMiB, 130 * kMiB);
  ASSERT_EQ(actor_.Syscall(SYS_madvise, {kBase + kMiB, 130 * kMiB, MADV_HUGEPAGE}), 0);
  actor_.Write(kBase + kMiB, 130 * kMiB, 1);
  const uint64_t before = CollapseIntoHugePages(kBase + kMiB, 130 * kMiB);
  ASSERT_GT(before, 64u << 10);
  mover_->ScanAndSend();
  EXPECT_EQ(SmapsKiB("AnonHugePages:", kBase + kMiB), before);
}

TEST_F(UffdWpTrackerTest, DisarmsAtMost64MiBUnderOneHoldOfTheMemoryLock) {
  actor_.Map(kBase, 160 * kMiB);
  actor_.Write(kBase, 160 * kMiB, 1);
  const auto vmas = VmaList::Read(actor_.process(), false);
  ASSERT_TRUE(vmas.ok());
  ASSERT_TRUE(tracker_->ScanAndReset(*vmas).ok());
  EXPECT_THAT(VmFlagsAt(kBase), HasSubstr(" uw"));
  ASSERT_TRUE(tracker_->Disarm().ok());
  EXPECT_EQ(tracker_->statistics().most_bytes_in_one_unregister.value(), 64 * kMiB);
  EXPECT_THAT(VmFlagsAt(kBase), testing::Not(HasSubstr(" uw")));
  EXPECT_TRUE(tracker_->Disarm().ok());
  EXPECT_EQ(tracker_->ScanAndReset(*vmas).status().code(), absl::StatusCode::kFailedPrecondition);
}

// Linux 6.12 breaks (BUG_ON in userfaultfd_unregister) where pieces of a file mapping are joined by
// unregistering them one after the other: there the kernel's report is what fails.
TEST_F(UffdWpTrackerTest, FileMappingsThatLieAcrossStepsAreArmedAndDisarmedWhole) {
  const std::string path = MakeFile(temp_, 16);
  for (uint64_t i = 1; i <= 64; ++i) {
    const uint64_t at = kBase + i * 64 * kMiB - 8 * kPage;
    actor_.MapFile(path.c_str(), at, 16 * kPage, MAP_PRIVATE);
    actor_.Write(at + 7 * kPage, 2 * kPage, i);
  }
  mover_->ScanAndSend();
  actor_.Write(kBase + 5 * 64 * kMiB, kPage, 100);
  EXPECT_EQ(PagesIn(mover_->ScanAndSend().dirty.pages, Range(kBase, 65 * 64 * kMiB)), 1u);
  EXPECT_THAT(mover_->Finish(), IsEmpty());
  ASSERT_TRUE(tracker_->Disarm().ok());
  EXPECT_THAT(VmFlagsAt(kBase + 64 * kMiB), testing::Not(HasSubstr(" uw")));
  actor_.Write(kBase + 7 * 64 * kMiB, kPage, 101);  // it lives
}

// What the application itself has registered stays its own.
TEST_F(UffdWpTrackerTest, ForeignUserfaultfdIsResentEachRoundWithAReason) {
  actor_.Map(kBase, 16 * kPage);
  actor_.Write(kBase, 16 * kPage, 1);
  const kernel::Userfaultfd foreign = UserfaultfdOf(actor_);
  ASSERT_TRUE(foreign.EnableWriteProtectAsync().ok());
  ASSERT_TRUE(foreign.Register(Range(kBase, 16 * kPage)).ok());
  for (int round = 0; round < 3; ++round) {
    EXPECT_EQ(PagesIn(mover_->ScanAndSend().dirty.pages, Range(kBase, 16 * kPage)), 16u);
    ASSERT_THAT(tracker_->full_resends(), SizeIs(1));
    EXPECT_EQ(tracker_->full_resends()[0].range, Range(kBase, 16 * kPage));
    EXPECT_THAT(tracker_->full_resends()[0].reason, HasSubstr("application's own userfaultfd"));
  }
  // Its marks were not touched either.
  EXPECT_EQ(PagemapEntry(kBase) & kernel::kPagemapUffdWp, 0u);
  actor_.Discard(kBase, kPage);
  // The application resets what it tracks: that hides a write from a scan that trusts its marks.
  actor_.Write(kBase + 3 * kPage, kPage, 2);
  auto scanner = PageScanner::Open(actor_.process());
  ASSERT_TRUE(scanner.ok());
  ASSERT_TRUE(
      scanner->Written(Range(kBase, 16 * kPage), Protection::kReset, WalkPace::kWhole).ok());
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

TEST_F(UffdWpTrackerTest, HugePagesAreFollowedPageByPageAfterTheirFirstWrite) {
  actor_.Map(kBase, 8 * kMiB);
  ASSERT_EQ(actor_.Syscall(SYS_madvise, {kBase, 8 * kMiB, MADV_HUGEPAGE}), 0);
  actor_.Write(kBase, 8 * kMiB, 1);
  mover_->ScanAndSend();
  actor_.Write(kBase + 3 * kMiB, kPage, 2);
  EXPECT_EQ(PagesIn(mover_->ScanAndSend().dirty.pages, Range(kBase, 8 * kMiB)), 1u);
  actor_.Discard(kBase + 4 * kMiB, 2 * kMiB);
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

// Says what it is told to, and sees whether it is asked at the right moments.
class FakeReads final : public InFlightReads {
 public:
  explicit FakeReads(std::function<bool()> is_protected) : is_protected_(std::move(is_protected)) {}

  absl::Status BeginReset() override {
    protected_at_begin = is_protected_();
    return absl::OkStatus();
  }
  absl::StatusOr<ExtentSet> Snapshot() override {
    protected_at_snapshot = is_protected_();
    if (!error.ok()) return error;
    return in_flight;
  }

  ExtentSet in_flight;
  absl::Status error;
  bool protected_at_begin = false;
  bool protected_at_snapshot = false;

 private:
  std::function<bool()> is_protected_;
};

class InFlightReadsTest : public UffdWpTrackerTest {
 protected:
  void SetUp() override { MakeTracker({.reads = &reads_}); }

  FakeReads reads_{[this] { return (PagemapEntry(kBase) & kernel::kPagemapUffdWp) != 0; }};
};

// DESIGN 5, direct I/O in flight.
TEST_F(InFlightReadsTest, BuffersOfReadsInFlightStayDirtyForTheNextRound) {
  actor_.Map(kBase, 16 * kPage);
  actor_.Write(kBase, 8 * kPage, 1);
  reads_.in_flight.Add(Range(kBase + 2 * kPage, 8 * kPage));
  mover_->ScanAndSend();
  EXPECT_FALSE(reads_.protected_at_begin);
  EXPECT_TRUE(reads_.protected_at_snapshot);
  reads_.in_flight.clear();
  // Not written through its page tables, but sent again; pages 8 and 9 hold nothing.
  EXPECT_EQ(PagesIn(mover_->ScanAndSend().dirty.pages, Range(kBase, 16 * kPage)), 6u);
  EXPECT_EQ(PagesIn(mover_->ScanAndSend().dirty.pages, Range(kBase, 16 * kPage)), 0u);
}

TEST_F(InFlightReadsTest, BuffersOfReadsInFlightArePartOfTheLastRound) {
  actor_.Map(kBase, 16 * kPage);
  actor_.Write(kBase, 16 * kPage, 1);
  reads_.in_flight.Add(Range(kBase + 2 * kPage, 4 * kPage));
  mover_->ScanAndSend();
  const auto last = tracker_->FinalScan(mover_->layout());
  ASSERT_TRUE(last.ok());
  EXPECT_EQ(PagesIn(last->pages, Range(kBase, 16 * kPage)), 4u);
}

TEST_F(InFlightReadsTest, UnknownReadsMakeTheNextRoundWhole) {
  actor_.Map(kBase, 16 * kPage);
  actor_.Write(kBase, 16 * kPage, 1);
  reads_.error = absl::ResourceExhaustedError("too many");
  mover_->ScanAndSend();
  // Whoever freezes now freezes it for all of that.
  EXPECT_GE(tracker_->owed().value(), 16u);
  reads_.error = absl::OkStatus();
  EXPECT_EQ(PagesIn(mover_->ScanAndSend().dirty.pages, Range(kBase, 16 * kPage)), 16u);
  EXPECT_EQ(PagesIn(mover_->ScanAndSend().dirty.pages, Range(kBase, 16 * kPage)), 0u);
  EXPECT_EQ(tracker_->owed().value(), 0u);
}

TEST_F(InFlightReadsTest, AFreezeIsNeededOnlyWhereDirectIoCannotBeFollowed) {
  EXPECT_FALSE(tracker_->needs_freeze());
  MakeTracker({.reads = &reads_, .direct_io_possible = true});
  EXPECT_FALSE(tracker_->needs_freeze());
  MakeTracker({.direct_io_possible = true});
  EXPECT_TRUE(tracker_->needs_freeze());
  MakeTracker({});
  EXPECT_FALSE(tracker_->needs_freeze());
}

}  // namespace
}  // namespace predump::pagemap
