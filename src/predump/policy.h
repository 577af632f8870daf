// When to freeze: a pure function from the history of rounds to a decision (DESIGN 8).
//
// --max-downtime is a bound, not an aim: once the expected downtime is within it, rounds go on as
// long as another one would still cut it by a fifth or more. Nothing here reads a clock.
#ifndef PREDUMP_PREDUMP_POLICY_H_
#define PREDUMP_PREDUMP_POLICY_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "absl/time/time.h"
#include "src/base/units.h"

namespace predump {

// One finished round: scanned, sent, acknowledged by the target.
struct RoundRecord {
  base::PageCount pages;           // sent
  base::ByteCount bytes;           // sent, headers included
  base::PageCount owed;            // that the next scan reports again, written or not
  absl::Duration since_last_scan;  // from the scan before this round's to this round's; round 0: 0
  absl::Duration scan;
  absl::Duration send;        // from the end of the scan to the acknowledgement
  absl::Duration frozen;      // only trackers that need it
  absl::Duration round_trip;  // of the link
};

// What a run out of rounds or time leads to when the expected downtime is still over the bound.
enum class Outcome { kCancel, kForce };

struct PolicyLimits {
  absl::Duration max_downtime = absl::Milliseconds(300);
  int max_rounds = 30;
  std::optional<int> exact_rounds;  // --rounds
  absl::Duration timeout = absl::InfiniteDuration();
  Outcome on_limit = Outcome::kCancel;  // of --timeout and --max-rounds
  // Stop, capture, restore; without scan, pages and the link's round trips.
  absl::Duration fixed_cost = absl::Milliseconds(3);
};

// After how many rounds a process that could not be frozen is given up. --rounds leaves room for as
// many more as --max-rounds, in which a child process may end.
int MostRounds(const PolicyLimits& limits);

enum class NextStep { kAnotherRound, kFreeze, kCancel };

struct Decision {
  NextStep next = NextStep::kAnotherRound;
  std::string reason;
  // If the freeze came now. Unset before the dirty rate is known (after round 0).
  std::optional<absl::Duration> expected_downtime;
  double dirty_pages_per_second = 0;
  double bytes_per_second = 0;
};

// `history` holds all rounds so far, oldest first, at least one. `elapsed` is the time since round
// 0 began. `may_freeze` is false while something passing forbids it (a child process that is about
// to end); `hold_reason` then says what.
Decision Decide(std::span<const RoundRecord> history, const PolicyLimits& limits,
                absl::Duration elapsed, bool may_freeze, const std::string& hold_reason);

}  // namespace predump

#endif  // PREDUMP_PREDUMP_POLICY_H_
