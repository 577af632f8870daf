// How a migration looks while it goes on: on a terminal one live line and a line per round,
// elsewhere log lines.
#ifndef PREDUMP_CLI_PROGRESS_H_
#define PREDUMP_CLI_PROGRESS_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "src/predump/report.h"

namespace predump::cli {

class ProgressDisplay : public MigrationObserver {
 public:
  // `live`: standard error is a terminal and nobody asked for JSON only. `rounds_to_output`: each
  // round is a JSON object in a line of standard output as well, for whoever asks for the next one.
  explicit ProgressDisplay(bool live, bool rounds_to_output = false)
      : live_(live), rounds_to_output_(rounds_to_output) {}
  ~ProgressDisplay() override;

  void OnNote(absl::string_view text) override;
  void OnProgress(const RoundReport& so_far) override;
  void OnRound(const RoundReport& round) override;

  // Takes the live line away, so that something else can be printed.
  void ClearLine();

 private:
  void Line(absl::string_view text);

  const bool live_;
  const bool rounds_to_output_;
  bool line_shown_ = false;
  int64_t last_drawn_ns_ = 0;
};

// "round 3: 1,234 pages, ...", without a line end.
std::string FormatRound(const RoundReport& round);

}  // namespace predump::cli

#endif  // PREDUMP_CLI_PROGRESS_H_
