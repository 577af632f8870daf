// Checked memory at addresses given on the command line: whatever the engine or the landing would
// like to have there, it must make way.
#include <stdlib.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/workloads/pages.h"
#include "tests/workloads/workload.h"

namespace predump::workloads {
namespace {

// "0x1000,0x2000" as numbers.
std::vector<uintptr_t> ParseAddresses(const std::string& text) {
  std::vector<uintptr_t> addresses;
  for (const char* at = text.c_str(); *at != '\0';) {
    char* end = nullptr;
    addresses.push_back(strtoull(at, &end, 0));
    if (end == at || (*end != ',' && *end != '\0') || addresses.back() % kPageBytes != 0) {
      Die("--address: not page-aligned addresses: %s", text.c_str());
    }
    at = *end == ',' ? end + 1 : end;
  }
  return addresses;
}

int Main(int argc, char** argv) {
  Options options(argc, argv, "high-address: checked memory at given addresses");
  Workload workload("high-address", options);
  const std::string text = options.Text("address", "0x600000000000", "one or more, with commas");
  const int64_t size_kib = options.Integer("size-kib", 4096, "at each address");
  options.Done();
  const size_t count = static_cast<size_t>(size_kib) / 4;
  if (count < 1) Die("--size-kib: at least 4");

  std::vector<std::unique_ptr<CheckedPages>> places;
  for (const uintptr_t address : ParseAddresses(text)) {
    void* memory = MapPages(count, reinterpret_cast<void*>(address));
    places.push_back(
        std::make_unique<CheckedPages>(workload, memory, count, workload.seed() ^ address));
  }
  if (places.empty()) Die("--address: none given");
  workload.AddCounter("memory_start") = reinterpret_cast<uint64_t>(places[0]->page(0));
  workload.AddCounter("memory_bytes") = count * kPageBytes;
  Random random(workload.seed());
  Heartbeat heartbeat(workload);
  while (!workload.StopRequested()) {
    heartbeat.Beat();
    for (auto& pages : places) {
      for (int i = 0; i < 16; ++i) pages->Write(random.Below(count));
      for (int i = 0; i < 16; ++i) pages->Verify(random.Below(count));
    }
    SleepNs(workload, kNsPerMs);
  }
  for (auto& pages : places) pages->VerifyAll();
  return workload.Finish();
}

}  // namespace
}  // namespace predump::workloads

int main(int argc, char** argv) { return predump::workloads::Main(argc, argv); }
