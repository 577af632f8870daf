#include "src/kernel/time_offsets.h"

#include <errno.h>

#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "src/base/atomic_file.h"
#include "src/base/errors.h"

namespace predump::kernel {

absl::StatusOr<TimeOffsets> ParseTimeOffsets(absl::string_view text) {
  TimeOffsets offsets;
  for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipWhitespace())) {
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ', absl::SkipWhitespace());
    int64_t seconds = 0;
    int64_t nanoseconds = 0;
    // A clock reads at most a few centuries: what is larger is no offset.
    constexpr int64_t kMaxSeconds = int64_t{1} << 33;
    if (words.size() != 3 || !absl::SimpleAtoi(words[1], &seconds) ||
        !absl::SimpleAtoi(words[2], &nanoseconds) || seconds > kMaxSeconds ||
        seconds < -kMaxSeconds || nanoseconds < 0 || nanoseconds >= 1'000'000'000) {
      return absl::DataLossError(absl::StrCat("timens_offsets: unexpected line '", line, "'"));
    }
    const int64_t total = seconds * 1'000'000'000 + nanoseconds;
    if (words[0] == "monotonic") offsets.monotonic_ns = total;
    if (words[0] == "boottime") offsets.boottime_ns = total;
  }
  return offsets;
}

absl::StatusOr<TimeOffsets> ReadTimeOffsets(pid_t pid) {
  const absl::StatusOr<std::string> text =
      base::ReadWholeFile(absl::StrCat("/proc/", pid, "/timens_offsets"));
  if (!text.ok()) {
    const bool process_there = base::ReadWholeFile(absl::StrCat("/proc/", pid, "/stat")).ok();
    if (base::ErrnoOf(text.status()) == ENOENT && process_there) return TimeOffsets{};
    if (!process_there) return base::TargetExited(absl::StrCat("process ", pid, " has exited"));
    return text.status();
  }
  return ParseTimeOffsets(*text);
}

}  // namespace predump::kernel
