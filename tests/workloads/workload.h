// What every workload is built from: options, the report, heartbeats, the end.
//
// Contract of every program here: `NAME --report FILE [options]`. It runs until SIGTERM, then
// checks everything once more and exits 0 if nothing was ever wrong, 1 otherwise. SIGTERM stays
// blocked and is asked for between two steps, so that stopping a workload interrupts none of its
// calls.
#ifndef PREDUMP_TESTS_WORKLOADS_WORKLOAD_H_
#define PREDUMP_TESTS_WORKLOADS_WORKLOAD_H_

#include <time.h>

#include <cstdint>
#include <string>
#include <vector>

#include "tests/workloads/report.h"

namespace predump::workloads {

inline constexpr int64_t kNsPerMs = 1'000'000;
inline constexpr int64_t kNsPerSecond = 1'000'000'000;

int64_t NowNs(clockid_t clock = CLOCK_MONOTONIC);
timespec ToTimespec(int64_t ns);

// Ends the program with exit code 2: it could not be set up, which is no verdict on anything.
[[noreturn, gnu::format(printf, 1, 2)]] void Die(const char* format, ...);
// Die() with strerror(errno) unless `ok`; returns nothing.
void Require(bool ok, const char* what);
// For calls that return -1 on error: the result, or Die().
template <typename T>
T Must(T result, const char* what) {
  Require(result != static_cast<T>(-1), what);
  return result;
}

// Options as `--name VALUE`, `--name=VALUE` or a bare `--name`. Each accessor consumes its option;
// Done() refuses what is left over, and serves --help.
class Options {
 public:
  Options(int argc, char** argv, const char* summary);
  int64_t Integer(const char* name, int64_t default_value, const char* help);
  std::string Text(const char* name, const std::string& default_value, const char* help);
  bool Flag(const char* name, const char* help);
  void Done();
  bool wants_help() const { return wants_help_; }

 private:
  bool Take(const char* name, bool has_value, std::string* value);

  std::vector<std::string> arguments_;
  std::string help_;
  bool wants_help_ = false;
};

// One per process. Thread rule: every member may be called from any thread.
class Workload {
 public:
  // Consumes --report, --copied-report, --seed and --max-seconds; the caller takes its own options,
  // then Done().
  Workload(const char* name, Options& options);
  Workload(const Workload&) = delete;
  Workload& operator=(const Workload&) = delete;

  Report& report() { return *report_; }
  uint64_t seed() const { return seed_; }
  const std::string& report_path() const { return report_path_; }
  // Whether a move brings an older copy of the report: the hosts share no files.
  bool report_is_copied() const { return report_is_copied_; }

  // A counter shown in the report under `name` (at most 31 characters).
  Counter& AddCounter(const std::string& name);
  // A failed check.
  [[gnu::format(printf, 2, 3)]] void Error(const char* format, ...);
  // A blocking call returned EINTR and no handler of the workload's own had run.
  void CountEintr(const char* call);
  // True once SIGTERM has come. A workload that outlives --max-seconds stops too, with an error.
  bool StopRequested();
  // Writes the verdict and returns the exit code. Nothing may be checked afterwards.
  [[nodiscard]] int Finish();
  // The same from a signal handler; does not return.
  [[noreturn]] void FinishInHandler();

  int TakeHeartbeatSlot();

 private:
  void StoreError(const char* text);

  Report* report_ = nullptr;
  std::string report_path_;
  bool report_is_copied_ = false;
  uint64_t seed_ = 0;
  int64_t lifetime_end_ns_ = 0;
  std::atomic<bool> stopping_ = false;
  std::atomic<int> heartbeat_slots_ = 0;
};

// The pulse of one thread: measures the longest time between two beats, sees time run backwards,
// and counts in private memory beside the report. Belongs to one thread.
class Heartbeat {
 public:
  explicit Heartbeat(Workload& workload);
  void Beat();

 private:
  Workload& workload_;
  int slot_;
  int64_t last_ns_ = 0;
  uint64_t beats_ = 0;
  uint64_t seen_reset_ = 0;
};

// Sleeps on CLOCK_MONOTONIC, counting an EINTR.
void SleepNs(Workload& workload, int64_t ns);

// A linear congruential generator: the same numbers from the same seed, state in moved memory.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  uint64_t Next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return state_ >> 33;
  }
  // In [0, bound).
  uint64_t Below(uint64_t bound) { return Next() % bound; }

 private:
  uint64_t state_;
};

}  // namespace predump::workloads

#endif  // PREDUMP_TESTS_WORKLOADS_WORKLOAD_H_
