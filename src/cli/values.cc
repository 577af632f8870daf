#include "src/cli/values.h"

#include <cmath>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"

namespace predump::cli {

absl::StatusOr<absl::Duration> ParseDuration(absl::string_view text, absl::Duration unit) {
  double number = 0;
  absl::Duration duration;
  if (absl::SimpleAtod(text, &number)) {
    duration = number * unit;
  } else if (!absl::ParseDuration(text, &duration)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text, "' is not a duration (like 300ms, 2s or 1m30s)"));
  }
  if (std::isnan(number) || duration < absl::ZeroDuration() ||
      duration == absl::InfiniteDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text, "' must be zero or more, and finite"));
  }
  return duration;
}

absl::StatusOr<base::ByteCount> ParseByteRate(absl::string_view text) {
  absl::string_view digits = text;
  double factor = 1;
  if (!digits.empty()) {
    switch (digits.back()) {
      case 'k':
      case 'K':
        factor = 1 << 10;
        break;
      case 'm':
      case 'M':
        factor = 1 << 20;
        break;
      case 'g':
      case 'G':
        factor = 1 << 30;
        break;
      default:
        break;
    }
    if (factor > 1) digits.remove_suffix(1);
  }
  double number = 0;
  // 2^62 bytes a second is no limit any more and still fits every sum made of it.
  if (!absl::SimpleAtod(digits, &number) || !(number * factor >= 1) || number * factor > 0x1p62) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text, "' is not a rate in bytes a second (like 500000, 100M or 1.5G)"));
  }
  return base::ByteCount(static_cast<uint64_t>(number * factor));
}

absl::StatusOr<TimeoutValue> ParseTimeout(absl::string_view text) {
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(text, absl::MaxSplits(':', 1));
  TimeoutValue value;
  absl::StatusOr<absl::Duration> after = ParseDuration(parts.first, absl::Seconds(1));
  if (!after.ok()) return after.status();
  value.after = *after;
  if (parts.second.empty() || parts.second == "cancel") {
    value.outcome = Outcome::kCancel;
  } else if (parts.second == "force") {
    value.outcome = Outcome::kForce;
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("'", parts.second, "' is no outcome of a timeout: it is 'cancel' or 'force'"));
  }
  return value;
}

std::string FormatBytes(double bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(kUnits)) {
    bytes /= 1024;
    ++unit;
  }
  return unit == 0 ? absl::StrFormat("%.0f B", bytes)
                   : absl::StrFormat("%.1f %s", bytes, kUnits[unit]);
}

bool IsProcessId(absl::string_view text) {
  int pid = 0;
  // SimpleAtoi takes blanks and signs, too.
  return text.find_first_not_of("0123456789") == absl::string_view::npos &&
         absl::SimpleAtoi(text, &pid) && text[0] != '0';
}

std::string Printable(absl::string_view text) {
  std::string printable;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    // 0x80 to 0x9f are control characters too; in UTF-8 they stand behind 0xc2.
    const bool is_c1 = byte >= 0x80 && byte <= 0x9f && i > 0 && text[i - 1] == '\xc2';
    if (byte < 0x20 || byte == 0x7f || is_c1) {
      absl::StrAppendFormat(&printable, "\\x%02x", byte);
    } else {
      printable.push_back(text[i]);
    }
  }
  return printable;
}

}  // namespace predump::cli
