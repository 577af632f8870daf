// A region of transparent huge pages, written here and there, part of it discarded now and then.
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include <array>

#include "tests/workloads/pages.h"
#include "tests/workloads/workload.h"

namespace predump::workloads {
namespace {

constexpr size_t kHugeBytes = 2 << 20;
constexpr size_t kPagesPerHuge = kHugeBytes / kPageBytes;

// AnonHugePages of this process in KiB.
uint64_t AnonymousHugeKib() {
  FILE* file = fopen("/proc/self/smaps_rollup", "re");
  Require(file != nullptr, "/proc/self/smaps_rollup");
  std::array<char, 256> line;
  unsigned long kib = 0;
  while (fgets(line.data(), line.size(), file) != nullptr) {
    if (sscanf(line.data(), "AnonHugePages: %lu kB", &kib) == 1) break;
  }
  fclose(file);
  return kib;
}

int Main(int argc, char** argv) {
  Options options(argc, argv, "huge: checked transparent huge pages");
  Workload workload("huge", options);
  const int64_t size_mib = options.Integer("size-mib", 64, "even");
  options.Done();
  const size_t huge_pages = static_cast<size_t>(size_mib) / 2;
  if (huge_pages < 2) Die("--size-mib: at least 4");

  const size_t bytes = huge_pages * kHugeBytes;
  void* reserved = mmap(nullptr, bytes + kHugeBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  Require(reserved != MAP_FAILED, "mmap");
  const auto aligned = (reinterpret_cast<uintptr_t>(reserved) + kHugeBytes - 1) & -kHugeBytes;
  auto* memory = reinterpret_cast<std::byte*>(aligned);
  Must(mprotect(memory, bytes, PROT_READ | PROT_WRITE), "mprotect");
  Must(madvise(memory, bytes, MADV_HUGEPAGE), "MADV_HUGEPAGE");

  CheckedPages pages(workload, memory, huge_pages * kPagesPerHuge, workload.seed());
  Counter& huge_kib = workload.AddCounter("anon_huge_kib");
  huge_kib = AnonymousHugeKib();
  workload.AddCounter("anon_huge_kib_at_start") = huge_kib.load();
  workload.AddCounter("memory_start") = aligned;
  workload.AddCounter("memory_bytes") = bytes;
  Random random(workload.seed());
  Heartbeat heartbeat(workload);
  for (uint64_t iteration = 0; !workload.StopRequested(); ++iteration) {
    heartbeat.Beat();
    for (int i = 0; i < 8; ++i) pages.Write(random.Below(pages.pages()));
    for (int i = 0; i < 32; ++i) pages.Verify(random.Below(pages.pages()));
    if (iteration % 512 == 511) {
      // One huge page goes and comes back, so that some are whole again after being split.
      const size_t first = random.Below(huge_pages) * kPagesPerHuge;
      for (size_t i = 0; i < kPagesPerHuge; ++i) pages.Verify(first + i);
      Must(madvise(pages.page(first), kHugeBytes, MADV_DONTNEED), "MADV_DONTNEED");
      if (FirstNonZeroWord(pages.page(first)) != kWordsPerPage) {
        workload.Error("a discarded huge page is not zero");
      }
      pages.Refill(first, kPagesPerHuge);
      huge_kib = AnonymousHugeKib();
    }
    SleepNs(workload, kNsPerMs);
  }
  pages.VerifyAll();
  return workload.Finish();
}

}  // namespace
}  // namespace predump::workloads

int main(int argc, char** argv) { return predump::workloads::Main(argc, argv); }
