// Mappings, heap and stack in motion at a given number of page writes per second.
#include <stdint.h>
#include <unistd.h>

#include <algorithm>
#include <span>
#include <string>

#include "tests/workloads/churn_regions.h"
#include "tests/workloads/pages.h"
#include "tests/workloads/workload.h"

namespace predump::workloads {
namespace {

// The heap of brk(2), ours alone: nothing here allocates once it exists.
class BreakHeap {
 public:
  BreakHeap(Workload& workload, size_t most_pages)
      : workload_(workload),
        random_(workload.seed() + 77),
        generations_(static_cast<uint32_t*>(MapPages(most_pages / 1024 + 1)), most_pages) {
    const auto now = reinterpret_cast<uintptr_t>(sbrk(0));
    Require(sbrk(static_cast<intptr_t>(-now & (kPageBytes - 1))) != FailedBreak(), "sbrk");
    start_ = static_cast<std::byte*>(sbrk(0));
  }

  // Grows or shrinks, writing what is new; or verifies. Returns the pages written.
  size_t Step() {
    if (sbrk(0) != start_ + pages_ * kPageBytes) Die("somebody else moved the break");
    const size_t pages = 1 + random_.Below(32);
    switch (random_.Below(4)) {
      case 0:
      case 1:
        return Grow(pages);
      case 2:
        Shrink(pages);
        return 0;
      default:
        VerifyAll();
        return 0;
    }
  }

  void VerifyAll() {
    for (size_t i = 0; i < pages_; ++i) {
      if (FirstBadWord(Page(i), Base(i)) == kWordsPerPage) continue;
      workload_.Error("heap page %zu at %p is wrong", i, static_cast<void*>(Page(i)));
      FillPage(Page(i), Base(i));
    }
  }

 private:
  static void* FailedBreak() { return reinterpret_cast<void*>(-1); }
  std::byte* Page(size_t index) const { return start_ + index * kPageBytes; }
  uint64_t Base(size_t index) const { return PageBase(77, index, generations_[index]); }

  size_t Grow(size_t pages) {
    if (pages_ + pages > generations_.size()) return 0;
    Require(sbrk(static_cast<intptr_t>(pages * kPageBytes)) != FailedBreak(), "sbrk");
    for (size_t i = pages_; i < pages_ + pages; ++i) {
      if (FirstNonZeroWord(Page(i)) != kWordsPerPage) {
        workload_.Error("new heap page %zu at %p is not zero", i, static_cast<void*>(Page(i)));
      }
      generations_[i]++;
      FillPage(Page(i), Base(i));
    }
    pages_ += pages;
    return pages;
  }

  void Shrink(size_t pages) {
    if (pages > pages_) return;
    Require(sbrk(-static_cast<intptr_t>(pages * kPageBytes)) != FailedBreak(), "sbrk");
    pages_ -= pages;
  }

  Workload& workload_;
  Random random_;
  std::span<uint32_t> generations_;
  std::byte* start_ = nullptr;
  size_t pages_ = 0;
};

// Each frame fills a page and finds it as it was once the deeper ones have returned.
[[gnu::noinline]] bool DescendStack(int depth, uint64_t seed) {
  uint64_t frame[kWordsPerPage];
  FillPage(frame, PageBase(seed, static_cast<uint64_t>(depth), 0));
  asm volatile("" : : "r"(frame) : "memory");
  const bool deeper_ok = depth == 0 || DescendStack(depth - 1, seed);
  const uint64_t base = PageBase(seed, static_cast<uint64_t>(depth), 0);
  return FirstBadWord(frame, base) == kWordsPerPage && deeper_ok;
}

int Main(int argc, char** argv) {
  Options options(argc, argv, "churn: mappings that come, go, move, merge and are discarded");
  Workload workload("churn", options);
  const int64_t rate = options.Integer("pages-per-second", 50'000, "written");
  const int64_t regions = options.Integer("regions", 48, "at most, at a time");
  const int64_t most_pages = options.Integer("region-pages", 1024, "of a region, at most");
  const int64_t stack_pages = options.Integer("stack-pages", 1500, "deepest recursion");
  options.Done();
  if (rate < 1 || regions < 2 || most_pages < 2) Die("a number is too small");

  ChurnRegions churn(workload, {static_cast<size_t>(regions), static_cast<size_t>(most_pages),
                                workload.report_path() + ".mapped"});
  Counter& written = workload.AddCounter("pages_written");
  Counter& deepest = workload.AddCounter("deepest_stack_pages");
  workload.AddCounter("memory_start") = reinterpret_cast<uint64_t>(churn.fixed_page());
  workload.AddCounter("memory_bytes") = churn.fixed_pages() * kPageBytes;
  BreakHeap heap(workload, 20'000);
  Random random(workload.seed() + 1);
  Heartbeat heartbeat(workload);

  int64_t due_ns = NowNs();
  while (!workload.StopRequested()) {
    heartbeat.Beat();
    uint64_t pages = churn.Step();
    if (random.Below(8) == 0) pages += heap.Step();
    if (random.Below(64) == 0) {
      // Deeper and deeper, so that the stack mapping grows all along.
      const uint64_t reach = 16 + written / 1000;
      const auto depth = random.Below(std::min(static_cast<uint64_t>(stack_pages), reach)) + 1;
      if (!DescendStack(static_cast<int>(depth), depth)) workload.Error("a stack frame changed");
      if (depth > deepest) deepest = depth;
      pages += depth;
    }
    written += pages;

    due_ns += static_cast<int64_t>(pages) * kNsPerSecond / rate;
    const int64_t ahead_ns = due_ns - NowNs();
    if (ahead_ns > kNsPerMs / 5) SleepNs(workload, ahead_ns);
    if (ahead_ns < -kNsPerSecond) due_ns = NowNs() - kNsPerSecond;  // no endless catching up
  }
  churn.VerifyAll();
  heap.VerifyAll();
  return workload.Finish();
}

}  // namespace
}  // namespace predump::workloads

int main(int argc, char** argv) { return predump::workloads::Main(argc, argv); }
