// What every tracker promises of memory that the kernel swaps out or merges.
#include <sys/mman.h>
#include <sys/syscall.h>

#include <array>
#include <fstream>
#include <string>
#include <thread>

#include "absl/strings/match.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/pagemap/swap.h"
#include "tests/pagemap/tracker_fixture.h"

namespace predump::pagemap {
namespace {

using ::testing::Contains;
using ::testing::Field;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST_P(TrackerTest, MergeableMemoryIsResentWhole) {
  actor_.Map(kBase, 16 * kPage);
  actor_.Write(kBase, 16 * kPage, 1);
  if (actor_.Syscall(SYS_madvise, {kBase, 16 * kPage, MADV_MERGEABLE}) != 0) {
    GTEST_SKIP() << "this kernel has no KSM";
  }
  for (int round = 0; round < 2; ++round) {
    // Flags are known in the first round only, as at a freeze without BPF.
    const auto vmas = VmaList::Read(actor_.process(), /*with_flags=*/round == 0);
    ASSERT_TRUE(vmas.ok());
    const auto dirty = ScanAndReset(*vmas);
    ASSERT_TRUE(dirty.ok());
    EXPECT_EQ(PagesIn(dirty->pages, Range(kBase, 16 * kPage)), 16u);
    if (incremental()) {
      EXPECT_THAT(tracker_->full_resends(), Contains(Field(&FullResend::reason, HasSubstr("KSM"))));
    }
    const auto last = tracker_->FinalScan(*vmas);
    ASSERT_TRUE(last.ok());
    EXPECT_EQ(PagesIn(last->pages, Range(kBase, 16 * kPage)), 16u);
  }
}

TEST_P(TrackerTest, SwappedPagesAreFollowedUnderSwap) {
  if (!HasSwap()) GTEST_SKIP() << "this machine has no swap";
  const base::AddressRange memory = Range(kBase, 64 * kPage);
  actor_.Map(kBase, 64 * kPage);
  actor_.Write(kBase, 64 * kPage, 1);
  ASSERT_TRUE(SwapOut(actor_, memory));
  EXPECT_EQ(PagesIn(mover_->ScanAndSend().dirty.pages, memory), 64u);
  // In memory again, since it was read to be sent; out and in once more is no write. (For the
  // soft-dirty tracker a page in another frame vouches for nothing: it may send it again.)
  const bool sure = !absl::StartsWith(GetParam(), "soft_dirty");
  ASSERT_TRUE(SwapOut(actor_, memory));
  actor_.Read(kBase + 7 * kPage);
  Mover::Round round = mover_->ScanAndSend();
  if (sure) {
    ExpectSent(round, memory, 0);
  }
  ASSERT_TRUE(SwapOut(actor_, memory));
  actor_.Write(kBase + 9 * kPage, kPage, 2);
  actor_.Write(kBase + 11 * kPage, kPage, 2);
  ASSERT_TRUE(SwapOut(actor_, Range(kBase + 11 * kPage, kPage)));  // written, then swapped out
  actor_.Discard(kBase + 20 * kPage, 4 * kPage);
  round = mover_->ScanAndSend();
  for (const uint64_t page : {9, 11}) {
    EXPECT_TRUE(round.dirty.pages.Contains(base::RemoteAddress(kBase + page * kPage))) << page;
  }
  if (sure) {
    ExpectSent(round, memory, 2);
  }
  EXPECT_EQ(PagesIn(round.dirty.drop, memory), 4u);
  ASSERT_TRUE(SwapOut(actor_, Range(kBase, 8 * kPage)));
  actor_.Discard(kBase, 2 * kPage);
  actor_.Write(kBase + kPage, kPage, 3);
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

// Turns merging on, and lets it be quick, for as long as it lives.
class MergingOn {
 public:
  MergingOn() {
    for (Setting& setting : settings_) {
      std::ifstream(setting.path) >> setting.before;
      std::ofstream(setting.path) << setting.value << std::flush;
    }
  }
  ~MergingOn() {
    for (const Setting& setting : settings_) {
      std::ofstream(setting.path) << setting.before << std::flush;
    }
  }
  bool on() const {
    std::string now;
    std::ifstream(settings_[2].path) >> now;
    return now == "1";
  }

 private:
  struct Setting {
    const char* path;
    const char* value;
    std::string before;
  };
  std::array<Setting, 3> settings_ = {{{"/sys/kernel/mm/ksm/sleep_millisecs", "1", ""},
                                       {"/sys/kernel/mm/ksm/pages_to_scan", "10000", ""},
                                       {"/sys/kernel/mm/ksm/run", "1", ""}}};
};

TEST_P(TrackerTest, MergedPagesAreSentAsTheyAreUnderKsm) {
  const MergingOn merging;
  if (!merging.on()) GTEST_SKIP() << "same-page merging (KSM) cannot be turned on here";
  const auto fill = [&](uint64_t value) {
    actor_.Call(
        [](const MemoryActor::Arguments& a) -> int64_t {
          for (uint64_t i = 0; i < 64 * kPage; i += 8) {
            *reinterpret_cast<volatile uint64_t*>(kBase + i) = a[0];
          }
          return 0;
        },
        {value});
  };
  const auto merged = [&] {
    std::ifstream file("/proc/" + std::to_string(actor_.pid()) + "/ksm_merging_pages");
    uint64_t pages = 0;
    file >> pages;
    return pages;
  };
  actor_.Map(kBase, 64 * kPage);
  ASSERT_EQ(actor_.Syscall(SYS_madvise, {kBase, 64 * kPage, MADV_MERGEABLE}), 0);
  mover_->ReadFlags(true);  // as the engine does
  fill(1);
  mover_->ScanAndSend();
  fill(2);
  // There is no event for this, and the entries of merged pages have no mark of the writes.
  while (merged() < 32) std::this_thread::yield();
  const Mover::Round round = mover_->ScanAndSend();
  EXPECT_EQ(PagesIn(round.dirty.pages, Range(kBase, 64 * kPage)), 64u);
  actor_.Write(kBase + 5 * kPage, kPage, 3);
  EXPECT_THAT(mover_->Finish(), IsEmpty());
}

}  // namespace
}  // namespace predump::pagemap
