// Option values as people write them (durations, byte rates, the timeout with its outcome), and
// values as people read them.
#ifndef PREDUMP_CLI_VALUES_H_
#define PREDUMP_CLI_VALUES_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "src/base/units.h"
#include "src/predump/policy.h"

namespace predump::cli {

// "300", "300ms", "2s", "1m30s"; a bare number is in `unit`. Errors: InvalidArgument (not a
// duration, negative).
absl::StatusOr<absl::Duration> ParseDuration(absl::string_view text, absl::Duration unit);

// "1048576", "100K", "10M", "1.5G": bytes a second, K = 1024. Errors: InvalidArgument (not a
// number, zero, negative, too large).
absl::StatusOr<base::ByteCount> ParseByteRate(absl::string_view text);

struct TimeoutValue {
  absl::Duration after;
  Outcome outcome = Outcome::kCancel;
};

// "60", "60:cancel", "60:force": seconds and what then happens.
absl::StatusOr<TimeoutValue> ParseTimeout(absl::string_view text);

// Whether `text` is one, decimal and without leading zeros.
bool IsProcessId(absl::string_view text);

// "1.5 GiB", "832 KiB", "12 B".
std::string FormatBytes(double bytes);

// `text` with its control characters as \xNN: what images say must not command a terminal.
std::string Printable(absl::string_view text);

}  // namespace predump::cli

#endif  // PREDUMP_CLI_VALUES_H_
