#include "src/predump/policy.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace predump {
namespace {

// A further round must promise this much to be worth its traffic.
constexpr double kWorthwhileRatio = 0.8;
// Throughput of rounds smaller than this says more about round trips than about the link.
constexpr uint64_t kMeaningfulBytes = 4u << 20;

// The link's speed as the largest rounds saw it: bytes per second over the latest rounds that
// moved enough to measure, else over the largest there is.
double Bandwidth(std::span<const RoundRecord> history) {
  const RoundRecord* best = nullptr;
  for (const RoundRecord& round : history) {
    if (round.bytes.value() >= kMeaningfulBytes) best = &round;
  }
  if (best == nullptr) {
    best = &*std::max_element(history.begin(), history.end(),
                              [](const auto& a, const auto& b) { return a.bytes < b.bytes; });
  }
  const double seconds = std::max(absl::ToDoubleSeconds(best->send), 1e-6);
  return std::max(static_cast<double>(best->bytes.value()), 1.0) / seconds;
}

// Prepare and Ready, Commit and Running.
constexpr int kRoundTripsFrozen = 2;

// What was written, without what was sent only because it was owed.
double WrittenPages(const RoundRecord& round, const RoundRecord& before) {
  return static_cast<double>(round.pages.value() - std::min(round.pages, before.owed).value());
}

// Pages a second, over the last two intervals so that one lucky round does not decide.
double DirtyRate(std::span<const RoundRecord> history) {
  double pages = 0;
  double seconds = 0;
  const size_t first = history.size() > 3 ? history.size() - 2 : 1;
  for (size_t i = first; i < history.size(); ++i) {
    pages += WrittenPages(history[i], history[i - 1]);
    seconds += absl::ToDoubleSeconds(history[i].since_last_scan);
  }
  return seconds > 0 ? pages / seconds : 0;
}

// If the freeze came now, and if it came after one more round.
struct Expectation {
  absl::Duration now;
  absl::Duration after_another;
};

Expectation Expect(std::span<const RoundRecord> history, const PolicyLimits& limits,
                   double dirty_pages_per_second, double bytes_per_second) {
  const double page_seconds = static_cast<double>(base::PageSize()) / bytes_per_second;
  const RoundRecord& last = history.back();
  const RoundRecord& before = history[history.size() - 2];
  // What was owed the time before as well will be owed again; the rest is done with one round.
  const auto owed = static_cast<double>(last.owed.value());
  const auto always_owed = static_cast<double>(std::min(last.owed, before.owed).value());
  const double since_scan = absl::ToDoubleSeconds(last.send);
  const double remaining = dirty_pages_per_second * since_scan + owed;
  // Another round takes what it has to send plus what any round costs (scan, acknowledgement).
  const double next_round_seconds =
      remaining * page_seconds + std::min(absl::ToDoubleSeconds(last.scan), since_scan);
  const double next_remaining = dirty_pages_per_second * next_round_seconds + always_owed;
  const absl::Duration base = limits.fixed_cost + last.scan + kRoundTripsFrozen * last.round_trip;
  return {base + absl::Seconds(remaining * page_seconds),
          base + absl::Seconds(next_remaining * page_seconds)};
}

// True once three rounds in a row have not brought less dirty memory.
bool Stalled(std::span<const RoundRecord> history) {
  if (history.size() < 5) return false;
  const size_t n = history.size();
  const auto pages = [&](size_t i) { return static_cast<double>(history[i].pages.value()); };
  const double before = pages(n - 4);
  return pages(n - 3) > 0.9 * before && pages(n - 2) > 0.9 * before && pages(n - 1) > 0.9 * before;
}

}  // namespace

int MostRounds(const PolicyLimits& limits) {
  return limits.max_rounds + limits.exact_rounds.value_or(0);
}

Decision Decide(std::span<const RoundRecord> history, const PolicyLimits& limits,
                absl::Duration elapsed, bool may_freeze, const std::string& hold_reason) {
  Decision decision;
  const int rounds = static_cast<int>(history.size());
  decision.bytes_per_second = Bandwidth(history);

  absl::Duration next_expected = absl::InfiniteDuration();
  if (rounds >= 2) {
    decision.dirty_pages_per_second = DirtyRate(history);
    const Expectation expected =
        Expect(history, limits, decision.dirty_pages_per_second, decision.bytes_per_second);
    decision.expected_downtime = expected.now;
    next_expected = expected.after_another;
  }

  if (limits.exact_rounds.has_value() && (may_freeze || rounds < *limits.exact_rounds)) {
    if (rounds < *limits.exact_rounds) return decision;
    decision.next = NextStep::kFreeze;
    decision.reason = absl::StrCat("the ", rounds, " rounds asked for are done");
    return decision;
  }

  const bool out_of_time = elapsed >= limits.timeout;
  const bool out_of_rounds = rounds >= MostRounds(limits);
  const bool in_bound =
      decision.expected_downtime.has_value() && *decision.expected_downtime <= limits.max_downtime;

  if (!may_freeze) {
    if (!out_of_time && !out_of_rounds) {
      decision.reason = hold_reason;
      return decision;
    }
    decision.next = NextStep::kCancel;
    decision.reason = hold_reason;
    return decision;
  }

  const bool worthwhile = decision.expected_downtime.has_value() &&
                          next_expected < kWorthwhileRatio * *decision.expected_downtime;
  if (in_bound && (!worthwhile || out_of_time || out_of_rounds)) {
    decision.next = NextStep::kFreeze;
    decision.reason =
        "the expected downtime is within the bound and another round would not cut it much";
    return decision;
  }
  if (!out_of_time && !out_of_rounds) {
    if (!in_bound && Stalled(history)) {
      decision.reason = "the process writes as fast as the link carries";
    }
    return decision;
  }

  const std::string limit = out_of_time
                                ? absl::StrCat("after ", absl::FormatDuration(limits.timeout))
                                : absl::StrCat("after ", rounds, " rounds");
  const std::string expectation =
      decision.expected_downtime.has_value()
          ? absl::StrFormat("the expected downtime is %.1f ms, over the bound of %.1f ms",
                            absl::ToDoubleMilliseconds(*decision.expected_downtime),
                            absl::ToDoubleMilliseconds(limits.max_downtime))
          : "the rate of writing is not known yet";
  decision.next = limits.on_limit == Outcome::kForce ? NextStep::kFreeze : NextStep::kCancel;
  decision.reason = absl::StrCat(limit, " ", expectation);
  return decision;
}

}  // namespace predump
