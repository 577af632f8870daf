#include "tests/support/proc_snapshot.h"

#include <dirent.h>
#include <errno.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "src/base/atomic_file.h"
#include "src/base/errors.h"

namespace predump::test_support {
namespace {

using Entries = std::map<std::string, std::string>;

// Reads files of one process; a file that is gone is no error, everything else is.
class Reader {
 public:
  explicit Reader(pid_t pid) : root_(absl::StrCat("/proc/", pid, "/")) {}

  std::string Read(absl::string_view name) {
    absl::StatusOr<std::string> text = base::ReadWholeFile(absl::StrCat(root_, name));
    if (!text.ok()) {
      Note(text.status());
      return "";
    }
    return *std::move(text);
  }

  std::string Link(absl::string_view name) {
    char target[4096];
    const std::string path = absl::StrCat(root_, name);
    const ssize_t size = readlink(path.c_str(), target, sizeof target);
    if (size == -1) {
      Note(base::ErrnoError(errno, "readlink ", path));
      return "";
    }
    return std::string(target, static_cast<size_t>(size));
  }

  std::vector<std::string> List(absl::string_view name) {
    std::vector<std::string> names;
    const std::string path = absl::StrCat(root_, name);
    const std::unique_ptr<DIR, int (*)(DIR*)> directory(opendir(path.c_str()), closedir);
    if (directory == nullptr) {
      Note(base::ErrnoError(errno, "opendir ", path));
      return names;
    }
    while (const dirent* entry = readdir(directory.get())) {
      if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  const absl::Status& status() const { return status_; }

 private:
  void Note(const absl::Status& status) {
    const std::optional<int> error = base::ErrnoOf(status);
    if (error == ENOENT || error == ESRCH) return;
    if (status_.ok()) status_ = status;
  }

  const std::string root_;
  absl::Status status_;
};

// Fields of /proc/PID/status that change while a process does nothing but run.
bool IsRestless(absl::string_view field) {
  static const auto* const kFields = new absl::flat_hash_set<absl::string_view>(
      {"FDSize", "SigQ", "VmPeak", "VmSize", "VmHWM", "VmRSS", "RssAnon", "RssFile", "RssShmem",
       "VmData", "VmStk", "VmExe", "VmLib", "VmPTE", "VmSwap", "HugetlbPages",
       "voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"});
  return kFields->contains(field);
}

// Running, sleeping and waiting come and go; stopped, traced and dead do not.
std::string SteadyState(absl::string_view value) {
  if (absl::StartsWithIgnoreCase(value, "R") || absl::StartsWith(value, "S") ||
      absl::StartsWith(value, "D")) {
    return "alive";
  }
  return std::string(value);
}

void AddStatus(const std::string& text, const std::string& prefix, Entries& entries) {
  for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> field =
        absl::StrSplit(line, absl::MaxSplits(':', 1));
    if (IsRestless(field.first)) continue;
    const absl::string_view value = absl::StripAsciiWhitespace(field.second);
    entries[absl::StrCat(prefix, "status/", field.first)] =
        field.first == "State" ? SteadyState(value) : std::string(value);
  }
}

void AddMaps(Reader& reader, Entries& entries) {
  for (absl::string_view line : absl::StrSplit(reader.Read("maps"), '\n', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> field =
        absl::StrSplit(line, absl::MaxSplits(' ', 1));
    std::string value(field.second);
    absl::RemoveExtraAsciiWhitespace(&value);
    entries[absl::StrCat("maps/", field.first)] = value;
  }
  std::string range;
  for (absl::string_view line : absl::StrSplit(reader.Read("smaps"), '\n', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> field =
        absl::StrSplit(line, absl::MaxSplits(' ', 1));
    if (!absl::EndsWith(field.first, ":")) {
      range = std::string(field.first);
    } else if (field.first == "VmFlags:") {
      entries[absl::StrCat("vmflags/", range)] =
          std::string(absl::StripAsciiWhitespace(field.second));
    }
  }
}

void AddDescriptors(Reader& reader, Entries& entries) {
  for (const std::string& number : reader.List("fd")) {
    const std::string target = reader.Link(absl::StrCat("fd/", number));
    if (target.empty()) continue;  // closed under our reading
    entries[absl::StrCat("fd/", number)] = target;
    const std::string text = reader.Read(absl::StrCat("fdinfo/", number));
    for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
      const std::pair<absl::string_view, absl::string_view> field =
          absl::StrSplit(line, absl::MaxSplits(':', 1));
      std::string& value = entries[absl::StrCat("fdinfo/", number, "/", field.first)];
      absl::StrAppend(&value, value.empty() ? "" : "; ", absl::StripAsciiWhitespace(field.second));
    }
  }
}

void AddTasks(Reader& reader, Entries& entries) {
  for (const std::string& tid : reader.List("task")) {
    const std::string prefix = absl::StrCat("task/", tid, "/");
    AddStatus(reader.Read(absl::StrCat(prefix, "status")), prefix, entries);
    entries[absl::StrCat(prefix, "comm")] = reader.Read(absl::StrCat(prefix, "comm"));
    entries[absl::StrCat(prefix, "children")] = reader.Read(absl::StrCat(prefix, "children"));
  }
}

void AddRest(Reader& reader, Entries& entries) {
  for (const char* name : {"exe", "cwd", "root"}) {
    entries[absl::StrCat("link/", name)] = reader.Link(name);
  }
  for (const std::string& name : reader.List("ns")) {
    entries[absl::StrCat("ns/", name)] = reader.Link(absl::StrCat("ns/", name));
  }
  for (const char* name : {"timers", "cmdline", "oom_score_adj", "coredump_filter"}) {
    entries[name] = absl::CHexEscape(reader.Read(name));
  }
  entries["auxv"] = absl::BytesToHexString(reader.Read("auxv"));
  for (absl::string_view line : absl::StrSplit(reader.Read("limits"), '\n', absl::SkipEmpty())) {
    std::string value(line.substr(std::min<size_t>(26, line.size())));
    absl::RemoveExtraAsciiWhitespace(&value);
    const absl::string_view name = absl::StripAsciiWhitespace(line.substr(0, 26));
    entries[absl::StrCat("limits/", name)] = value;
  }
}

bool HasAnyPrefix(absl::string_view key, const std::vector<std::string>& prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(),
                     [&](const std::string& prefix) { return absl::StartsWith(key, prefix); });
}

// What follows the last slash.
absl::string_view Field(absl::string_view key) { return key.substr(key.rfind('/') + 1); }

bool ChangesWhileRunning(absl::string_view key) {
  if (absl::StartsWith(key, "fdinfo/")) {
    const absl::string_view field = Field(key);
    return field == "pos" || field == "ticks" || field == "it_value" || field == "eventfd-count" ||
           field == "tfd";
  }
  return absl::EndsWith(key, "/SigPnd") || absl::EndsWith(key, "/ShdPnd");
}

bool ChangesWithTheMove(absl::string_view key, absl::string_view value) {
  if (absl::StartsWith(key, "ns/")) return true;
  if (absl::StartsWith(key, "fdinfo/")) {
    const absl::string_view field = Field(key);
    return field == "ino" || field == "mnt_id" || field == "eventfd-id" || field == "tfd";
  }
  if (absl::StartsWith(key, "fd/")) {
    return absl::StartsWith(value, "pipe:[") || absl::StartsWith(value, "socket:[");
  }
  const absl::string_view field = Field(key);
  return field == "PPid" || field == "NSpid" || field == "NStgid" || field == "NSpgid" ||
         field == "NSsid" || field == "FDSize";
}

// "pipe:[123]" without its number: kept as far as it can be the same elsewhere.
std::string WithoutInode(absl::string_view value) {
  return std::string(value.substr(0, value.find('[')));
}

// The [heap] and [stack] of a running process grow; their fixed ends stay. Keyed by those.
Entries WithoutGrowth(const Entries& entries) {
  Entries result;
  std::map<std::string, std::string> renamed;
  for (const auto& [key, value] : entries) {
    if (!absl::StartsWith(key, "maps/")) continue;
    const std::pair<std::string, std::string> ends =
        absl::StrSplit(key.substr(5), absl::MaxSplits('-', 1));
    if (absl::EndsWith(value, "[heap]")) renamed[key.substr(5)] = ends.first + "-*";
    if (absl::EndsWith(value, "[stack]")) renamed[key.substr(5)] = "*-" + ends.second;
  }
  for (const auto& [key, value] : entries) {
    const size_t slash = key.find('/');
    const auto found =
        slash == std::string::npos ? renamed.end() : renamed.find(key.substr(slash + 1));
    const bool is_mapping = absl::StartsWith(key, "maps/") || absl::StartsWith(key, "vmflags/");
    if (is_mapping && found != renamed.end()) {
      result[absl::StrCat(key.substr(0, slash + 1), found->second)] = value;
    } else {
      result[key] = value;
    }
  }
  return result;
}

}  // namespace

absl::StatusOr<ProcSnapshot> ProcSnapshot::Take(pid_t pid) {
  Reader reader(pid);
  ProcSnapshot snapshot;
  const std::string status = reader.Read("status");
  if (status.empty()) {
    PREDUMP_RETURN_IF_ERROR(reader.status());
    return base::TargetExited(absl::StrCat("process ", pid));
  }
  AddStatus(status, "", snapshot.entries_);
  AddMaps(reader, snapshot.entries_);
  AddDescriptors(reader, snapshot.entries_);
  AddTasks(reader, snapshot.entries_);
  AddRest(reader, snapshot.entries_);
  PREDUMP_RETURN_IF_ERROR(reader.status());
  return snapshot;
}

std::vector<std::string> ProcSnapshot::Diff(const ProcSnapshot& after,
                                            const DiffOptions& options) const {
  const Entries first = options.ran_between ? WithoutGrowth(entries_) : entries_;
  const Entries second = options.ran_between ? WithoutGrowth(after.entries_) : after.entries_;
  std::map<std::string, std::pair<std::optional<std::string>, std::optional<std::string>>> both;
  for (const auto& [key, value] : first) both[key].first = value;
  for (const auto& [key, value] : second) both[key].second = value;

  std::vector<std::string> differences;
  for (const auto& [key, values] : both) {
    if (values.first == values.second || HasAnyPrefix(key, options.ignored_prefixes)) continue;
    if (options.ran_between && ChangesWhileRunning(key) && values.first && values.second) continue;
    if (options.moved && values.first && values.second && ChangesWithTheMove(key, *values.first) &&
        (!absl::StartsWith(key, "fd/") ||
         WithoutInode(*values.first) == WithoutInode(*values.second))) {
      continue;
    }
    differences.push_back(absl::StrCat(key, ": ", values.first.value_or("(none)"), " -> ",
                                       values.second.value_or("(none)")));
  }
  return differences;
}

}  // namespace predump::test_support
