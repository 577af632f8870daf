// What a migration did, for people and for machines. Field names follow QEMU's query-migrate.
#ifndef PREDUMP_PREDUMP_REPORT_H_
#define PREDUMP_PREDUMP_REPORT_H_

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "src/base/units.h"

namespace predump {

// How a migration ended. The numbers are the exit codes of the program: published, never changed.
enum class MigrationStatus {
  kCompleted = 0,   // runs at the target (or, with --leave-running, all that was asked for is done)
  kFailed = 1,      // something broke; the process runs on at the source
  kUsage = 2,       // bad options; nothing was touched
  kRefused = 3,     // the process cannot move; nothing was touched
  kCancelled = 4,   // by Ctrl-C, --timeout or --max-rounds; the process runs on at the source
  kParked = 5,      // the target's answer is missing; the process is parked: `predump resolve`
  kTargetGone = 6,  // the process ended by itself during the migration
};

// "completed", "failed", ... as in the JSON object.
absl::string_view StatusName(MigrationStatus status);

struct RoundReport {
  int number = 0;
  base::PageCount pages;
  base::ByteCount bytes;
  absl::Duration duration;  // scan, send and acknowledgement
  absl::Duration scan;
  absl::Duration frozen;  // zero with trackers that need no stop
  double dirty_pages_per_second = 0;
  double bytes_per_second = 0;
  base::PageCount remaining;  // dirty as this round began
  std::optional<absl::Duration> expected_downtime;

  // An element of "rounds" below.
  std::string ToJson() const;
};

// A time for which the process stood still here and then went on here.
struct StopReport {
  std::string what;  // "setup", "round 3", "freeze called off: ..."
  absl::Duration duration;
};

struct MigrationReport {
  MigrationStatus status = MigrationStatus::kFailed;
  std::string message;                // one sentence: what happened, what became of the process
  std::vector<std::string> blockers;  // kRefused: one line each
  std::string tracker;
  std::string tracker_reason;
  std::string source;
  std::string source_reason;
  std::optional<absl::Duration> downtime;  // of the freeze that handed over, or was rehearsed
  std::optional<absl::Time> frozen_at;     // when the freeze was asked for
  absl::Duration setup_stop;
  std::vector<StopReport> stops;  // all but the downtime, in order
  absl::Duration total_time;
  base::ByteCount transferred;
  base::PageCount pages_sent;
  std::vector<RoundReport> rounds;
  std::vector<std::pair<std::string, absl::Duration>> phases;  // of the downtime, in order
  std::optional<pid_t> restored_pid;                           // as the server sees it
  std::string stored_in;  // the directory of its images, on the server's host; empty: none
  bool verified = false;
  base::PageCount pages_verified;

  // One JSON object on one line, keys as documented in predump(1).
  std::string ToJson() const;
};

// Told what goes on while it goes on. Called from the migrating thread; must be quick.
class MigrationObserver {
 public:
  virtual ~MigrationObserver() = default;
  // A line worth keeping: setup done, choice of tracker and source, verification.
  virtual void OnNote(absl::string_view text) = 0;
  // Within a round, a few times a second.
  virtual void OnProgress(const RoundReport& so_far) = 0;
  virtual void OnRound(const RoundReport& round) = 0;
};

}  // namespace predump

#endif  // PREDUMP_PREDUMP_REPORT_H_
