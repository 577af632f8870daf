#include "src/pagemap/vdso_pages.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "src/kernel/process_memory.h"
#include "src/kernel/setup_injection.h"
#include "src/kernel/vdso_padding.h"
#include "tests/pagemap/memory_actor.h"

namespace predump::pagemap {
namespace {

constexpr uint64_t kPage = 4096;

Extent Range(uint64_t start, uint64_t size) { return Extent::FromOrdered(start, start + size); }

Vma VdsoAt(Extent range) {
  Vma vma;
  vma.range = range;
  vma.kind = VmaKind::kVdso;
  return vma;
}

// Reports what it is told to.
class FakeTracker final : public DirtyTracker {
 public:
  explicit FakeTracker(const DirtySet& dirty) : dirty_(dirty) {}
  absl::string_view name() const override { return "fake"; }
  bool needs_freeze() const override { return false; }
  absl::StatusOr<DirtySet> ScanAndReset(const VmaList&) override { return dirty_; }
  absl::StatusOr<DirtySet> FinalScan(const VmaList&) override { return dirty_; }
  const std::vector<FullResend>& full_resends() const override { return resends_; }
  absl::Status Disarm() override { return absl::OkStatus(); }

 private:
  const DirtySet& dirty_;
  std::vector<FullResend> resends_;
};

// Its pages are 'i' throughout.
class FakeSource final : public PageSource {
 public:
  absl::string_view name() const override { return "fake"; }
  base::PageCount max_pages() const override { return base::PageCount(4); }
  absl::StatusOr<FetchResult> Fetch(std::span<const Extent> wanted) override {
    FetchResult result;
    for (const Extent& extent : wanted) {
      result.fetched.push_back(extent);
      result.consumed += extent.pages();
      held_ += extent.size();
    }
    return result;
  }
  base::ByteCount held() const override { return held_; }
  absl::Status Push(int out_fd, base::ByteCount bytes) override {
    held_ -= bytes;
    const std::string all(bytes.value(), 'i');
    return ::write(out_fd, all.data(), all.size()) == static_cast<ssize_t>(all.size())
               ? absl::OkStatus()
               : absl::InternalError("write");
  }
  absl::Status Finish() override { return absl::OkStatus(); }

 private:
  base::ByteCount held_;
};

class VdsoPagesTest : public ::testing::Test {
 protected:
  std::string VdsoInMemory() {
    const auto memory = kernel::ProcessMemory::Open(actor_.process(), O_RDONLY);
    const Extent vdso = pages_->range().extents().front();
    std::string bytes(vdso.size().value(), '\0');
    EXPECT_TRUE(memory->ReadExactly(vdso.start(), std::as_writable_bytes(std::span(bytes))).ok());
    return bytes;
  }
  void SetUp() override {
    auto pages = VdsoPages::Copy(actor_.process());
    ASSERT_TRUE(pages.ok()) << pages.status();
    pages_.emplace(*std::move(pages));
    ASSERT_EQ(pages_->range().extents().size(), 1u);
  }

  MemoryActor actor_;
  std::optional<VdsoPages> pages_;
};

TEST_F(VdsoPagesTest, TheVdsoIsReportedOnceAndAgainOnlyWhereItMoved) {
  DirtySet changed;
  changed.pages.Add(Range(16 * kPage, kPage));
  changed.drop.Add(Range(18 * kPage, kPage));
  TrackerWithVdso tracker(std::make_unique<FakeTracker>(changed), *pages_);
  EXPECT_EQ(tracker.name(), "fake");
  const Extent first = pages_->range().extents().front();

  DirtySet both = changed;
  both.pages.Add(first);
  auto dirty = tracker.ScanAndReset(VmaList({VdsoAt(first)}));
  ASSERT_TRUE(dirty.ok()) << dirty.status();
  EXPECT_EQ(dirty->pages, both.pages);
  EXPECT_EQ(dirty->drop, changed.drop);

  dirty = tracker.ScanAndReset(VmaList({VdsoAt(first)}));
  ASSERT_TRUE(dirty.ok());
  EXPECT_EQ(dirty->pages, changed.pages);
  dirty = tracker.FinalScan(VmaList({VdsoAt(first)}));
  ASSERT_TRUE(dirty.ok());
  EXPECT_EQ(dirty->pages, changed.pages);

  const Extent moved = Range(64 * kPage, first.size().value());
  dirty = tracker.FinalScan(VmaList({VdsoAt(moved)}));
  ASSERT_TRUE(dirty.ok());
  EXPECT_TRUE(dirty->drop.Overlaps(first));
  EXPECT_TRUE(dirty->pages.Overlaps(moved));

  dirty = tracker.FinalScan(VmaList());
  ASSERT_TRUE(dirty.ok());
  EXPECT_TRUE(dirty->drop.Overlaps(moved));
  EXPECT_EQ(dirty->pages, changed.pages);
}

TEST_F(VdsoPagesTest, ItsBytesStandAtTheirPlaceAmongTheOthers) {
  const Extent vdso = pages_->range().extents().front();
  SourceWithVdso source(std::make_unique<FakeSource>(), *pages_);
  // Directly before and behind it, as one run, is memory of the process.
  std::vector<Extent> wanted = {
      Range(16 * kPage, kPage),
      Extent::FromOrdered(vdso.start().value() - kPage, vdso.end().value() + kPage)};
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const base::UniqueFd in(ends[0]);
  const base::UniqueFd out(ends[1]);
  std::vector<Extent> fetched;
  while (!wanted.empty()) {
    const auto result = source.Fetch(wanted);
    ASSERT_TRUE(result.ok()) << result.status();
    uint64_t left = base::ToBytes(result->consumed).value();
    ASSERT_GT(left, 0u);
    EXPECT_EQ(source.held().value(), left);
    EXPECT_FALSE(source.Fetch(wanted).ok()) << "what is held would be lost";
    // In parts, too.
    ASSERT_TRUE(source.Push(out.get(), base::ByteCount(kPage)).ok());
    ASSERT_TRUE(source.PushTo(out.get()).ok());
    EXPECT_EQ(source.held().value(), 0u);
    while (left > 0) {
      const uint64_t part = std::min(left, wanted.front().size().value());
      wanted.front() =
          Extent::FromOrdered(wanted.front().start().value() + part, wanted.front().end().value());
      if (wanted.front().empty()) wanted.erase(wanted.begin());
      left -= part;
    }
  }
  const std::string expected =
      std::string(2 * kPage, 'i') + VdsoInMemory() + std::string(kPage, 'i');
  std::string got(expected.size() + 1, '\0');
  const ssize_t n = ::read(in.get(), got.data(), got.size());
  ASSERT_EQ(n, static_cast<ssize_t>(expected.size()));
  got.resize(static_cast<size_t>(n));
  EXPECT_TRUE(got == expected);
}

// DESIGN 6: the helper's code lies in the padding for as long as it is at work.
TEST_F(VdsoPagesTest, WhatAnEngineLeftInThePaddingIsNotTheProcesss) {
  const std::string clean = VdsoInMemory();
  auto setup = kernel::InjectSetup(actor_.process(), {.userfaultfd = false});
  ASSERT_TRUE(setup.ok() && setup->helper.has_value()) << setup.status();
  ASSERT_NE(VdsoInMemory(), clean);
  const auto copied = VdsoPages::Copy(actor_.process());
  ASSERT_TRUE(copied.ok()) << copied.status();
  const auto bytes = copied->BytesFrom(copied->range().extents().front().start());
  EXPECT_TRUE(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()) == clean);
  EXPECT_TRUE(setup->helper->Finish().ok());
  EXPECT_EQ(VdsoInMemory(), clean);
}

}  // namespace
}  // namespace predump::pagemap
