// The page a workload reports through: a regular file mapped MAP_SHARED, so that it moves with the
// process as a file mapping and can be read from outside at any time, at either host.
//
// The layout is fixed (python-counter.py writes the same one). Every word is written by the
// workload, except `gap_reset_request`, which belongs to the reader.
#ifndef PREDUMP_TESTS_WORKLOADS_REPORT_H_
#define PREDUMP_TESTS_WORKLOADS_REPORT_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace predump::workloads {

using Counter = std::atomic<uint64_t>;
static_assert(Counter::is_always_lock_free, "a counter in a file must not need a lock");

inline constexpr uint64_t kReportMagic = 0x54524f50'45524450;  // "PDREPORT"
inline constexpr uint32_t kReportVersion = 2;
inline constexpr size_t kReportBytes = 4096;
inline constexpr uint64_t kNotableGapNs = 1'000'000;

// A counter of the workload's own, by name (zero terminated).
struct NamedCounter {
  char name[32];
  Counter value;
};

// A gap between two heartbeats of one thread of at least kNotableGapNs.
struct NotableGap {
  Counter end_ns;  // CLOCK_REALTIME, to be compared with what others saw
  Counter length_ns;
};

struct Report {
  std::atomic<uint64_t> magic;  // stored last: a report without it is not ready to be read
  uint32_t version;
  uint32_t size;
  std::atomic<int64_t> pid;
  Counter progress;              // zero until the workload has built up its state
  Counter errors;                // failed checks
  Counter eintr;                 // blocking calls that returned EINTR without a signal handler run
  Counter longest_gap_ns;        // between two heartbeats of one thread, since the start
  Counter longest_gap_reset_ns;  // the same, since the last reset
  Counter gap_reset_request;     // the reader stores a new value to have the gap reset ...
  Counter gap_reset_done;        // ... and it shows here once that has happened
  Counter restarts;              // how often a program was started anew over this report
  Counter finished;              // 1 once the final check is done ...
  Counter exit_code;             // ... and then what the process exits with
  Counter error_sequence;        // odd while the two texts below are being written
  Counter stray_signals;         // SIGUSR1 received; no workload sends one
  uint64_t reserved;
  char last_error[256];
  char first_error[256];
  char name[32];
  Counter counter_count;  // of `counters`, those below it have their names
  Counter gap_count;      // of notable gaps ever; number n is in notable_gaps[n % 16]
  uint64_t reserved_too[2];
  NamedCounter counters[64];
  NotableGap notable_gaps[16];
  uint64_t reserved_last[8];
  // One word per heartbeat, equal to a count in the process's private memory. A process brought
  // back from older memory disagrees with it.
  Counter witnesses[64];
};
static_assert(sizeof(Report) == kReportBytes);
static_assert(offsetof(Report, last_error) == 128);
static_assert(offsetof(Report, name) == 640);
static_assert(offsetof(Report, gap_count) == 680);
static_assert(offsetof(Report, counters) == 704);
static_assert(offsetof(Report, notable_gaps) == 3264);

}  // namespace predump::workloads

#endif  // PREDUMP_TESTS_WORKLOADS_REPORT_H_
