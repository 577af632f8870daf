#include "src/cli/progress.h"

#include <stdio.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "spdlog/spdlog.h"
#include "src/base/clock.h"
#include "src/cli/values.h"

namespace predump::cli {
namespace {

constexpr int64_t kRedrawNs = 100'000'000;

std::string Expected(const RoundReport& round) {
  return round.expected_downtime.has_value()
             ? absl::StrFormat("%.1f ms", absl::ToDoubleMilliseconds(*round.expected_downtime))
             : "not known yet";
}

}  // namespace

std::string FormatRound(const RoundReport& round) {
  std::string text = absl::StrFormat(
      "round %d: %d pages (%s) in %.1f ms, %s/s, %.0f dirty pages/s, expected downtime %s",
      round.number, round.pages.value(), FormatBytes(static_cast<double>(round.bytes.value())),
      absl::ToDoubleMilliseconds(round.duration), FormatBytes(round.bytes_per_second),
      round.dirty_pages_per_second, Expected(round));
  if (round.frozen > absl::ZeroDuration()) {
    absl::StrAppendFormat(&text, ", frozen %.3f ms", absl::ToDoubleMilliseconds(round.frozen));
  }
  return text;
}

ProgressDisplay::~ProgressDisplay() { ClearLine(); }

void ProgressDisplay::ClearLine() {
  if (!line_shown_) return;
  fputs("\r\033[K", stderr);
  fflush(stderr);
  line_shown_ = false;
}

void ProgressDisplay::Line(absl::string_view text) {
  if (live_) {
    ClearLine();
    absl::FPrintF(stderr, "%s\n", text);
  }
  // In the log file too, and on standard error where that is no terminal.
  spdlog::info("{}", std::string(text));
}

void ProgressDisplay::OnNote(absl::string_view text) { Line(text); }

void ProgressDisplay::OnRound(const RoundReport& round) {
  Line(FormatRound(round));
  if (!rounds_to_output_) return;
  absl::PrintF("%s\n", round.ToJson());
  fflush(stdout);
}

void ProgressDisplay::OnProgress(const RoundReport& so_far) {
  if (!live_) return;
  const int64_t now_ns = base::MonotonicNanoseconds();
  if (line_shown_ && now_ns - last_drawn_ns_ < kRedrawNs) return;
  last_drawn_ns_ = now_ns;
  absl::FPrintF(
      stderr, "\r\033[Kround %d: %.0f dirty pages/s, %s/s, %s remaining, expected downtime %s",
      so_far.number, so_far.dirty_pages_per_second, FormatBytes(so_far.bytes_per_second),
      FormatBytes(static_cast<double>(base::ToBytes(so_far.remaining).value())), Expected(so_far));
  fflush(stderr);
  line_shown_ = true;
}

}  // namespace predump::cli
