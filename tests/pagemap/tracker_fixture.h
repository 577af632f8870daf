// What the tests of trackers share: where memory lies, how pages are counted, and the fixture of
// the tests that run over every tracker.
#ifndef PREDUMP_TESTS_PAGEMAP_TRACKER_FIXTURE_H_
#define PREDUMP_TESTS_PAGEMAP_TRACKER_FIXTURE_H_

#include <cstdint>
#include <fstream>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "src/base/units.h"
#include "src/pagemap/dirty_tracker.h"
#include "src/pagemap/extent.h"
#include "src/pagemap/readv_source.h"
#include "src/pagemap/vma.h"
#include "tests/pagemap/memory_actor.h"
#include "tests/pagemap/mirror.h"
#include "tests/pagemap/trackers.h"
#include "tests/support/temp_dir.h"

namespace predump::pagemap {

inline constexpr uint64_t kPage = 4096;
inline constexpr uint64_t kMiB = 1 << 20;
inline constexpr uint64_t kBase = 0x700000000000;
inline constexpr uint64_t kElsewhere = 0x710000000000;

inline base::AddressRange Range(uint64_t start, uint64_t bytes) {
  return base::AddressRange::FromOrdered(start, start + bytes);
}

inline uint64_t PagesIn(const ExtentSet& set, base::AddressRange range) {
  ExtentSet other;
  other.Add(range);
  return set.Intersection(other).pages().value();
}

// A file of `pages` pages in `directory`, each filled with its number plus one.
inline std::string MakeFile(const test_support::TempDir& directory, uint64_t pages) {
  const std::string path = directory.File("mapped");
  std::ofstream file(path, std::ios::binary);
  for (uint64_t i = 0; i < pages; ++i) file << std::string(kPage, static_cast<char>(i + 1));
  return path;
}

// Takes the tracker's name (trackers.h).
class TrackerTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (const std::string why = WhyNoTracker(GetParam()); !why.empty()) GTEST_SKIP() << why;
    tracker_ = MakeTracker(GetParam(), actor_);
    auto source = ReadvSource::Create(actor_.process());
    ASSERT_TRUE(tracker_ != nullptr && source.ok());
    source_ = *std::move(source);
    mover_ = std::make_unique<Mover>(actor_, *tracker_, *source_);
  }

  // Whether it tells what was written from what was not.
  bool incremental() const { return !absl::StartsWith(GetParam(), "full"); }
  // Plain reads of pagemap cannot tell the zero page from data.
  bool tells_zero_pages() const {
    return GetParam() != "full_entries" && MemoryOnlyReadIsTheZeroPage();
  }

  // Expects `incremental` pages of `range` in the round; all of them where the tracker sends all.
  void ExpectSent(const Mover::Round& round, base::AddressRange range, uint64_t pages) {
    if (incremental()) {
      EXPECT_EQ(PagesIn(round.dirty.pages, range), pages);
    } else {
      EXPECT_GE(PagesIn(round.dirty.pages, range), pages);
    }
  }

  absl::StatusOr<DirtySet> ScanAndReset(const VmaList& vmas) {
    if (tracker_->needs_freeze()) actor_.Freeze();
    absl::StatusOr<DirtySet> dirty = tracker_->ScanAndReset(vmas);
    if (tracker_->needs_freeze()) actor_.Thaw();
    return dirty;
  }

  test_support::TempDir temp_ = *test_support::TempDir::Create();
  MemoryActor actor_;
  std::unique_ptr<DirtyTracker> tracker_;
  std::unique_ptr<ReadvSource> source_;
  std::unique_ptr<Mover> mover_;
};

}  // namespace predump::pagemap

#endif  // PREDUMP_TESTS_PAGEMAP_TRACKER_FIXTURE_H_
