// A pulse every 100 to 200 us over memory that is dirtied at a given rate: the judge of downtime,
// and of memory that changes at a known pace.
#include <pthread.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/workloads/pages.h"
#include "tests/workloads/workload.h"

namespace predump::workloads {
namespace {

constexpr int64_t kPauseNs = 100'000;  // plus the timer slack of 50 us
// After a gap the arrears are made up over several beats, so that the gap stays what it was.
constexpr int64_t kMostWritesPerBeat = 64;

struct Settings {
  size_t pages_per_thread;
  int64_t writes_per_second;  // of one thread
  bool sequential;
};

// One thread's slice of the memory and its pace.
class Worker {
 public:
  Worker(Workload& workload, const Settings& settings, std::byte* memory, uint64_t seed)
      : workload_(workload),
        settings_(settings),
        pages_(workload, memory, settings.pages_per_thread, seed),
        random_(seed) {}

  void Run(std::atomic<bool>& stop, Counter& written, bool leader) {
    Heartbeat heartbeat(workload_);
    int64_t due_ns = NowNs();
    while (!stop) {
      heartbeat.Beat();
      WriteWhatIsDue(due_ns, written);
      pages_.Verify(random_.Below(pages_.pages()));
      if (leader && workload_.StopRequested()) stop = true;
      SleepNs(workload_, kPauseNs);
    }
    pages_.VerifyAll();
  }

  uint64_t written() const { return written_; }

 private:
  void WriteWhatIsDue(int64_t& due_ns, Counter& written) {
    if (settings_.writes_per_second == 0) return;
    const int64_t interval_ns = kNsPerSecond / settings_.writes_per_second;
    const int64_t now = NowNs();
    if (now - due_ns > kNsPerSecond) due_ns = now - kNsPerSecond;
    for (int64_t n = 0; n < kMostWritesPerBeat && due_ns < now; ++n, due_ns += interval_ns) {
      const size_t page =
          settings_.sequential ? next_page_++ % pages_.pages() : random_.Below(pages_.pages());
      pages_.Write(page);
      ++written_;
      written++;
    }
  }

  Workload& workload_;
  const Settings settings_;
  CheckedPages pages_;
  Random random_;
  size_t next_page_ = 0;
  uint64_t written_ = 0;
};

int Main(int argc, char** argv) {
  Options options(argc, argv, "heart: heartbeat over memory dirtied at a given rate");
  Workload workload("heart", options);
  const int64_t size_mib = options.Integer("size-mib", 64, "memory");
  const int64_t rate = options.Integer("dirty-pages-per-second", 1000, "over all threads");
  const int64_t threads = options.Integer("threads", 1, "1 to 64");
  const std::string pattern = options.Text("pattern", "random", "sequential or random");
  options.Done();
  if (threads < 1 || threads > 64) Die("--threads: 1 to 64");
  if (size_mib < 1 || rate < 0) Die("--size-mib and --dirty-pages-per-second: not negative");
  if (pattern != "sequential" && pattern != "random") Die("--pattern: sequential or random");

  const auto count = static_cast<size_t>(threads);
  const size_t pages = static_cast<size_t>(size_mib) * 256;
  const Settings settings = {pages / count, rate == 0 ? 0 : std::max<int64_t>(1, rate / threads),
                             pattern == "sequential"};
  auto* memory = static_cast<std::byte*>(MapPages(pages));
  Counter& written = workload.AddCounter("pages_written");
  workload.AddCounter("memory_start") = reinterpret_cast<uint64_t>(memory);
  workload.AddCounter("memory_bytes") = pages * kPageBytes;

  std::vector<std::unique_ptr<Worker>> workers;
  for (size_t i = 0; i < count; ++i) {
    workers.push_back(std::make_unique<Worker>(workload, settings,
                                               memory + i * settings.pages_per_thread * kPageBytes,
                                               workload.seed() + i));
  }
  std::atomic<bool> stop = false;
  std::vector<std::thread> others;
  for (size_t i = 1; i < count; ++i) {
    others.emplace_back([&, i] { workers[i]->Run(stop, written, false); });
  }
  workers[0]->Run(stop, written, true);
  for (std::thread& thread : others) thread.join();

  uint64_t total = 0;
  for (const auto& worker : workers) total += worker->written();
  if (total != written) {
    workload.Error("wrote %llu pages, the report says %llu", static_cast<unsigned long long>(total),
                   static_cast<unsigned long long>(written.load()));
  }
  return workload.Finish();
}

}  // namespace
}  // namespace predump::workloads

int main(int argc, char** argv) { return predump::workloads::Main(argc, argv); }
