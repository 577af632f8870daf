// Every tracker with every source: a process that changes its memory in every way it can, round by
// round and while rounds run, must look the same at the target.
#include "tests/pagemap/mirror.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fstream>
#include <memory>
#include <string>
#include <tuple>
#include <utility>

#include "absl/strings/match.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/errors.h"
#include "tests/pagemap/memory_actor.h"
#include "tests/pagemap/sources.h"
#include "tests/pagemap/trackers.h"
#include "tests/support/temp_dir.h"

namespace predump::pagemap {
namespace {

using ::testing::IsEmpty;

constexpr uint64_t kPage = 4096;
constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kBase = 0x700000000000;
constexpr uint64_t kFileBase = 0x701000000000;
constexpr uint64_t kHugeBase = 0x702000000000;
constexpr uint64_t kSparseBase = 0x600000000000;
constexpr uint64_t kSecret = 0x703000000000;
constexpr uint64_t kElsewhere = 0x704000000000;

class MirrorTest : public testing::TestWithParam<std::tuple<std::string, std::string>> {
 protected:
  void SetUp() override {
    const auto& [tracker, source] = GetParam();
    if (const std::string why = WhyNoTracker(tracker); !why.empty()) GTEST_SKIP() << why;
    if (const std::string why = WhyNoSource(source); !why.empty()) GTEST_SKIP() << why;
    tracker_ = MakeTracker(tracker, actor_);
    source_ = MakeSource(source, actor_);
    ASSERT_TRUE(tracker_ != nullptr && source_ != nullptr);
    mover_ = std::make_unique<Mover>(actor_, *tracker_, *source_);
    std::ofstream(temp_.File("mapped"), std::ios::binary) << std::string(64 * kPage, 'f');
  }
  void TearDown() override {
    if (source_ == nullptr) return;
    EXPECT_TRUE(source_->Finish().ok());
  }

  // Nothing here costs by reservation with trackers that look at present pages only; plain pagemap
  // reads would read 128 MiB of entries for it, so those get a smaller one.
  uint64_t SparseBytes() const {
    return absl::EndsWith(std::get<0>(GetParam()), "_entries") ? 1ull << 30 : 64ull << 30;
  }

  test_support::TempDir temp_ = *test_support::TempDir::Create();
  MemoryActor actor_;
  std::unique_ptr<DirtyTracker> tracker_;
  std::unique_ptr<PageSource> source_;
  std::unique_ptr<Mover> mover_;
};

TEST_P(MirrorTest, FollowsEveryKindOfChangeFromRoundToRound) {
  actor_.Map(kBase, 128 * kPage);
  actor_.Write(kBase, 128 * kPage, 1);
  actor_.MapFile(temp_.File("mapped").c_str(), kFileBase, 64 * kPage, MAP_PRIVATE);
  actor_.Write(kFileBase + 4 * kPage, 8 * kPage, 1);
  actor_.Read(kFileBase + 20 * kPage);
  actor_.Map(kHugeBase, 4 * kMiB);
  actor_.Syscall(SYS_madvise, {kHugeBase, 4 * kMiB, MADV_HUGEPAGE});
  actor_.Write(kHugeBase, 4 * kMiB, 1);
  actor_.Map(kSparseBase, SparseBytes(), MAP_NORESERVE);
  actor_.Write(kSparseBase + SparseBytes() / 2, 8 * kPage, 1);
  actor_.Map(kSecret, 8 * kPage);
  actor_.Write(kSecret, 8 * kPage, 1);
  actor_.Protect(kSecret, 8 * kPage, PROT_NONE);
  const uint64_t brk = static_cast<uint64_t>(actor_.Syscall(SYS_brk, {0}));
  mover_->ScanAndSend();
  EXPECT_THAT(mover_->Finish(), IsEmpty());

  actor_.Unmap(kBase + 32 * kPage, 16 * kPage);             // a hole in the mapping
  actor_.Move(kBase + 64 * kPage, 16 * kPage, kElsewhere);  // a part moves away
  actor_.Discard(kFileBase + 4 * kPage, 2 * kPage);         // back to the file
  actor_.Write(kFileBase + 30 * kPage, kPage, 2);           // a new private copy
  actor_.Write(kHugeBase + kMiB, kPage, 2);
  ASSERT_EQ(actor_.Syscall(SYS_brk, {brk + 16 * kPage}), static_cast<int64_t>(brk + 16 * kPage));
  actor_.Write((brk + kPage - 1) / kPage * kPage, 8 * kPage, 2);
  mover_->ScanAndSend();
  EXPECT_THAT(mover_->Finish(), IsEmpty());

  actor_.Map(kBase + 32 * kPage, 16 * kPage);  // fills the hole, empty
  actor_.Write(kBase + 33 * kPage, kPage, 3);
  actor_.Move(kElsewhere, 16 * kPage, kBase + 64 * kPage);  // comes back and merges
  actor_.Write(kBase + 66 * kPage, kPage, 3);
  actor_.Protect(kBase + 8 * kPage, 8 * kPage, PROT_READ);  // splits
  actor_.Discard(kHugeBase + 2 * kMiB, 2 * kMiB);
  actor_.Discard(kBase, 2 * kPage);
  actor_.Read(kBase + kPage);  // the zero page
  actor_.Protect(kSecret, 4 * kPage, PROT_READ | PROT_WRITE);
  actor_.Write(kSecret, kPage, 3);
  actor_.Protect(kSecret, 4 * kPage, PROT_NONE);
  ASSERT_EQ(actor_.Syscall(SYS_brk, {brk}), static_cast<int64_t>(brk));
  mover_->ScanAndSend();
  actor_.Write(kBase + 66 * kPage, kPage, 4);
  actor_.Unmap(kSparseBase, SparseBytes());
  actor_.Call([](const MemoryActor::Arguments&) -> int64_t {
    char deep[256 << 10];  // the stack grows
    for (size_t i = 0; i < sizeof(deep); i += kPage) static_cast<volatile char*>(deep)[i] = 1;
    return 0;
  });
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

// One step of a process that never rests: writes, discards, maps, moves and protects, all of it
// derived from the step's number.
int64_t Churn(const MemoryActor::Arguments& a) {
  constexpr uint64_t kPages = 512;
  uint64_t state = a[5] * 0x9e3779b97f4a7c15 + 1;
  const auto below = [&state](uint64_t bound) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % bound;
  };
  for (int i = 0; i < 64; ++i) {
    auto* page = reinterpret_cast<volatile uint64_t*>(kBase + below(kPages) * kPage);
    page[below(512)] = state;
  }
  const uint64_t slot = kElsewhere + below(8) * 64 * kPage;
  auto* const place = reinterpret_cast<void*>(slot);
  switch (below(5)) {
    case 0:
      ::mmap(place, 32 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
             0);
      for (int i = 0; i < 8; ++i) {
        *reinterpret_cast<volatile uint64_t*>(slot + below(32) * kPage) = state;
      }
      break;
    case 1:
      ::munmap(place, (1 + below(32)) * kPage);
      break;
    case 2: {
      const uint64_t to = kElsewhere + below(8) * 64 * kPage;
      if (to == slot) break;
      const uint64_t pages = 1 + below(16);
      ::mremap(place, pages * kPage, pages * kPage, MREMAP_MAYMOVE | MREMAP_FIXED,
               reinterpret_cast<void*>(to + below(16) * kPage));
      break;
    }
    case 3:
      ::madvise(reinterpret_cast<void*>(kBase + below(kPages) * kPage), kPage, MADV_DONTNEED);
      break;
    default:
      *reinterpret_cast<volatile uint64_t*>(kFileBase + below(64) * kPage) = state;
      ::madvise(reinterpret_cast<void*>(kFileBase + below(64) * kPage), kPage, MADV_DONTNEED);
      break;
  }
  return 0;
}

TEST_P(MirrorTest, FollowsAProcessThatNeverRests) {
  actor_.Map(kBase, 512 * kPage);
  actor_.MapFile(temp_.File("mapped").c_str(), kFileBase, 64 * kPage, MAP_PRIVATE);
  for (int session = 0; session < 5; ++session) {
    actor_.StartLoop(Churn);
    for (int round = 0; round < 12; ++round) {
      const uint64_t before = actor_.loops_done();
      mover_->ScanAndSend();
      actor_.AwaitLoops(before + 20);
    }
    // Frozen in the middle of a step, which then goes on.
    EXPECT_THAT(mover_->Finish(), IsEmpty()) << "session " << session;
    actor_.StopLoop();
  }
}

// The helper shares the memory, which therefore outlives the process.
TEST_P(MirrorTest, AnExitedProcessIsReportedAlsoWhereItsMemoryLivesOn) {
  mover_->ScanAndSend();
  actor_.Kill();
  EXPECT_TRUE(base::IsTargetExited(tracker_->ScanAndReset(mover_->layout()).status()));
  EXPECT_TRUE(base::IsTargetExited(tracker_->FinalScan(mover_->layout()).status()));
  EXPECT_TRUE(tracker_->Disarm().ok());
}

INSTANTIATE_TEST_SUITE_P(TrackersAndSources, MirrorTest,
                         testing::Combine(testing::Values("uffd_wp", "soft_dirty",
                                                          "soft_dirty_entries", "full",
                                                          "full_entries"),
                                          testing::Values("readv", "helper", "process_vmsplice")),
                         [](const auto& param_info) {
                           return std::get<0>(param_info.param) + "_" +
                                  std::get<1>(param_info.param);
                         });

}  // namespace
}  // namespace predump::pagemap
