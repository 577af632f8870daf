#include "src/kernel/procfs_fd.h"

#include <charconv>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "src/base/errors.h"
#include "src/kernel/procfs_task.h"

namespace predump::kernel {

std::optional<absl::string_view> FdInfo::Find(absl::string_view key) const {
  for (const auto& [name, value] : lines) {
    if (name == key) return value;
  }
  return std::nullopt;
}

absl::StatusOr<FdInfo> ParseFdInfo(absl::string_view text) {
  FdInfo info;
  bool has_position = false;
  for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipWhitespace())) {
    line = absl::StripAsciiWhitespace(line);
    // "key: value" and "key:\tvalue"; a first word without its own colon is the key instead.
    const size_t colon = line.find(':');
    const size_t space = line.find(' ');
    const size_t cut = std::min({colon, space, line.size()});
    const absl::string_view key = line.substr(0, colon < space ? colon : cut);
    const absl::string_view value =
        absl::StripAsciiWhitespace(line.substr(std::min(key.size() + 1, line.size())));
    bool ok = true;
    if (key == "pos") {
      ok = absl::SimpleAtoi(value, &info.position);
      has_position = true;
    } else if (key == "flags") {
      const char* end = value.data() + value.size();
      ok = std::from_chars(value.data(), end, info.flags, 8).ptr == end;
    } else if (key == "mnt_id") {
      ok = absl::SimpleAtoi(value, &info.mount_id);
    } else if (key == "ino") {
      ok = absl::SimpleAtoi(value, &info.inode);
    }
    if (!ok) return absl::DataLossError(absl::StrCat("not a line of fdinfo: \"", line, "\""));
    info.lines.emplace_back(key, value);
  }
  if (!has_position) return absl::DataLossError("fdinfo without a position");
  return info;
}

absl::StatusOr<FdInfo> ReadFdInfo(const ProcessHandle& process, int fd) {
  PREDUMP_ASSIGN_OR_RETURN(const std::string text,
                           ReadProcFile(process, absl::StrCat("fdinfo/", fd)));
  return ParseFdInfo(text);
}

absl::StatusOr<std::vector<PosixTimer>> ParseTimers(absl::string_view text) {
  std::vector<PosixTimer> timers;
  for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(line, absl::MaxSplits(": ", 1));
    bool ok = true;
    if (parts.first == "ID") {
      timers.emplace_back();
      ok = absl::SimpleAtoi(parts.second, &timers.back().id);
    } else if (timers.empty()) {
      ok = false;
    } else if (parts.first == "signal") {
      const std::pair<absl::string_view, absl::string_view> both =
          absl::StrSplit(parts.second, '/');
      ok = absl::SimpleAtoi(both.first, &timers.back().signal_number) &&
           absl::SimpleHexAtoi(both.second, &timers.back().signal_value);
    } else if (parts.first == "notify") {
      // "signal/pid.123", "thread/tid.124"
      const std::pair<absl::string_view, absl::string_view> both =
          absl::StrSplit(parts.second, '/');
      const std::pair<absl::string_view, absl::string_view> whom = absl::StrSplit(both.second, '.');
      timers.back().notify = std::string(both.first);
      timers.back().notify_is_tid = whom.first == "tid";
      ok = (whom.first == "tid" || whom.first == "pid") &&
           absl::SimpleAtoi(whom.second, &timers.back().notify_pid);
    } else if (parts.first == "ClockID") {
      ok = absl::SimpleAtoi(parts.second, &timers.back().clock);
    }
    if (!ok) return absl::DataLossError(absl::StrCat("not a line of timers: \"", line, "\""));
  }
  return timers;
}

absl::StatusOr<std::vector<PosixTimer>> ReadTimers(const ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(const std::string text, ReadProcFile(process, "timers"));
  return ParseTimers(text);
}

}  // namespace predump::kernel
