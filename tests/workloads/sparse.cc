// A reservation of many GiB with a few pages used here and there, as large runtimes make it.
#include <sys/mman.h>

#include <memory>
#include <vector>

#include "tests/workloads/pages.h"
#include "tests/workloads/workload.h"

namespace predump::workloads {
namespace {

constexpr size_t kIslandPages = 16;

int Main(int argc, char** argv) {
  Options options(argc, argv, "sparse: a huge reservation, hardly used");
  Workload workload("sparse", options);
  const int64_t size_gib = options.Integer("size-gib", 64, "reserved");
  const int64_t islands = options.Integer("islands", 64, "places of 16 pages in use");
  options.Done();
  if (size_gib < 1 || islands < 1) Die("a number is too small");

  // Two reservations: one never made accessible but for its islands, one writable as a whole.
  const size_t bytes = static_cast<size_t>(size_gib) << 30;
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* closed = mmap(nullptr, bytes, PROT_NONE, kFlags, -1, 0);
  Require(closed != MAP_FAILED, "mmap of the reservation");
  void* open = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, kFlags, -1, 0);
  Require(open != MAP_FAILED, "mmap of the writable reservation");

  const size_t stride = bytes / static_cast<size_t>(islands) & -kPageBytes;
  std::vector<std::unique_ptr<CheckedPages>> places;
  for (size_t i = 0; i < static_cast<size_t>(islands); ++i) {
    std::byte* in_closed = static_cast<std::byte*>(closed) + i * stride;
    std::byte* in_open = static_cast<std::byte*>(open) + i * stride;
    Must(mprotect(in_closed, kIslandPages * kPageBytes, PROT_READ | PROT_WRITE), "mprotect");
    for (std::byte* start : {in_closed, in_open}) {
      places.push_back(std::make_unique<CheckedPages>(workload, start, kIslandPages,
                                                      workload.seed() + i, false));
    }
  }
  workload.AddCounter("memory_start") = reinterpret_cast<uint64_t>(places[0]->page(0));
  workload.AddCounter("memory_bytes") = kIslandPages * kPageBytes;
  Random random(workload.seed());
  Heartbeat heartbeat(workload);
  while (!workload.StopRequested()) {
    heartbeat.Beat();
    for (int i = 0; i < 16; ++i) {
      places[random.Below(places.size())]->Write(random.Below(kIslandPages));
      places[random.Below(places.size())]->Verify(random.Below(kIslandPages));
    }
    CheckedPages& discarded = *places[random.Below(places.size())];
    const size_t first = random.Below(kIslandPages);
    discarded.Verify(first);
    Must(madvise(discarded.page(first), kPageBytes, MADV_DONTNEED), "MADV_DONTNEED");
    discarded.MarkDiscarded(first, 1);
    SleepNs(workload, kNsPerMs);
  }
  for (auto& place : places) place->VerifyAll();
  return workload.Finish();
}

}  // namespace
}  // namespace predump::workloads

int main(int argc, char** argv) { return predump::workloads::Main(argc, argv); }
