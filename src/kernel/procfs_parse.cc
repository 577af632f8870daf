// The text formats of /proc/PID/{stat,status,syscall,limits,auxv}.
#include <string.h>

#include <functional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "src/kernel/procfs_task.h"

namespace predump::kernel {
namespace {

// Reads space-separated numbers in order and remembers whether all were there.
class FieldReader {
 public:
  explicit FieldReader(absl::string_view text)
      : fields_(absl::StrSplit(text, absl::ByAnyChar(" \n"), absl::SkipEmpty())) {}

  template <typename Number>
  void Read(Number* out) {
    if (next_ >= fields_.size() || !absl::SimpleAtoi(fields_[next_], out)) ok_ = false;
    ++next_;
  }
  void Skip(size_t count) { next_ += count; }
  bool ok() const { return ok_; }

 private:
  std::vector<absl::string_view> fields_;
  size_t next_ = 0;
  bool ok_ = true;
};

template <typename Number>
bool ParseNumbers(absl::string_view text, std::vector<Number>* out) {
  for (absl::string_view word :
       absl::StrSplit(text, absl::ByAnyChar(" \t"), absl::SkipWhitespace())) {
    Number number = 0;
    if (!absl::SimpleAtoi(word, &number)) return false;
    out->push_back(number);
  }
  return true;
}

template <typename Number>
bool ParseFour(absl::string_view text, std::array<Number, 4>* out) {
  std::vector<Number> numbers;
  if (!ParseNumbers(text, &numbers) || numbers.size() != 4) return false;
  std::copy(numbers.begin(), numbers.end(), out->begin());
  return true;
}

bool ParseOctal(absl::string_view text, uint32_t* out) {
  *out = 0;
  for (const char c : text) {
    if (c < '0' || c > '7') return false;
    *out = *out * 8 + static_cast<uint32_t>(c - '0');
  }
  return !text.empty();
}

bool ParseFlag(absl::string_view text, bool* out) {
  *out = text == "1";
  return text == "0" || text == "1";
}

// Sets the field that `key` names; false where the value is not of its form.
bool SetStatusField(absl::string_view key, absl::string_view value, StatusFields* status) {
  using Setter = bool (*)(absl::string_view, StatusFields*);
  static constexpr std::pair<absl::string_view, Setter> kSetters[] = {
      {"Umask", [](auto v, auto* s) { return ParseOctal(v, &s->umask); }},
      {"State", [](auto v, auto* s) { return !v.empty() && (s->state = v[0]) != 0; }},
      {"Tgid", [](auto v, auto* s) { return absl::SimpleAtoi(v, &s->tgid); }},
      {"Pid", [](auto v, auto* s) { return absl::SimpleAtoi(v, &s->pid); }},
      {"PPid", [](auto v, auto* s) { return absl::SimpleAtoi(v, &s->ppid); }},
      {"TracerPid", [](auto v, auto* s) { return absl::SimpleAtoi(v, &s->tracer_pid); }},
      {"Uid", [](auto v, auto* s) { return ParseFour(v, &s->uids); }},
      {"Gid", [](auto v, auto* s) { return ParseFour(v, &s->gids); }},
      {"FDSize", [](auto v, auto* s) { return absl::SimpleAtoi(v, &s->fd_table_size); }},
      {"Groups", [](auto v, auto* s) { return ParseNumbers(v, &s->groups); }},
      {"NStgid", [](auto v, auto* s) { return ParseNumbers(v, &s->namespace_tgids); }},
      {"NSpid", [](auto v, auto* s) { return ParseNumbers(v, &s->namespace_pids); }},
      {"NSpgid", [](auto v, auto* s) { return ParseNumbers(v, &s->namespace_groups); }},
      {"NSsid", [](auto v, auto* s) { return ParseNumbers(v, &s->namespace_sessions); }},
      {"VmSize", [](auto, auto* s) { return s->has_memory = true; }},
      {"CoreDumping", [](auto v, auto* s) { return ParseFlag(v, &s->core_dumping); }},
      {"THP_enabled", [](auto v, auto* s) { return ParseFlag(v, &s->thp_enabled); }},
      {"Threads", [](auto v, auto* s) { return absl::SimpleAtoi(v, &s->thread_count); }},
      {"SigQ",
       [](auto v, auto* s) {
         const std::pair<absl::string_view, absl::string_view> both = absl::StrSplit(v, '/');
         return absl::SimpleAtoi(both.first, &s->queued_signals) &&
                absl::SimpleAtoi(both.second, &s->queued_signals_limit);
       }},
      {"SigPnd", [](auto v, auto* s) { return absl::SimpleHexAtoi(v, &s->pending_thread); }},
      {"ShdPnd", [](auto v, auto* s) { return absl::SimpleHexAtoi(v, &s->pending_process); }},
      {"SigBlk", [](auto v, auto* s) { return absl::SimpleHexAtoi(v, &s->blocked); }},
      {"SigIgn", [](auto v, auto* s) { return absl::SimpleHexAtoi(v, &s->ignored); }},
      {"SigCgt", [](auto v, auto* s) { return absl::SimpleHexAtoi(v, &s->caught); }},
      {"CapInh", [](auto v, auto* s) { return absl::SimpleHexAtoi(v, &s->cap_inheritable); }},
      {"CapPrm", [](auto v, auto* s) { return absl::SimpleHexAtoi(v, &s->cap_permitted); }},
      {"CapEff", [](auto v, auto* s) { return absl::SimpleHexAtoi(v, &s->cap_effective); }},
      {"CapBnd", [](auto v, auto* s) { return absl::SimpleHexAtoi(v, &s->cap_bounding); }},
      {"CapAmb", [](auto v, auto* s) { return absl::SimpleHexAtoi(v, &s->cap_ambient); }},
      {"NoNewPrivs", [](auto v, auto* s) { return ParseFlag(v, &s->no_new_privileges); }},
      {"Seccomp", [](auto v, auto* s) { return absl::SimpleAtoi(v, &s->seccomp_mode); }},
      {"Seccomp_filters", [](auto v, auto* s) { return absl::SimpleAtoi(v, &s->seccomp_filters); }},
      {"voluntary_ctxt_switches",
       [](auto v, auto* s) { return absl::SimpleAtoi(v, &s->voluntary_switches); }},
  };
  for (const auto& [name, set] : kSetters) {
    if (key == name) return set(value, status);
  }
  return true;
}

}  // namespace

absl::StatusOr<StatFields> ParseStat(absl::string_view text) {
  StatFields stat;
  // comm may hold spaces, parentheses and newlines: it ends at the last ')'.
  const size_t open = text.find('(');
  const size_t close = text.rfind(')');
  if (open == absl::string_view::npos || close == absl::string_view::npos || close < open ||
      close + 3 > text.size() || !absl::SimpleAtoi(text.substr(0, open), &stat.pid)) {
    return absl::DataLossError(absl::StrCat("not a stat line: \"", text.substr(0, 200), "\""));
  }
  stat.comm = std::string(text.substr(open + 1, close - open - 1));
  stat.state = text[close + 2];
  FieldReader fields(text.substr(close + 3));
  fields.Read(&stat.ppid);
  fields.Read(&stat.process_group);
  fields.Read(&stat.session);
  fields.Read(&stat.tty);
  fields.Read(&stat.tty_process_group);
  fields.Read(&stat.flags);
  fields.Skip(4);  // minflt cminflt majflt cmajflt
  fields.Read(&stat.user_ticks);
  fields.Read(&stat.system_ticks);
  fields.Skip(2);  // cutime cstime
  fields.Read(&stat.priority);
  fields.Read(&stat.nice);
  fields.Read(&stat.thread_count);
  fields.Skip(1);  // itrealvalue
  fields.Read(&stat.start_time_ticks);
  fields.Skip(3);  // vsize rss rsslim
  fields.Read(&stat.start_code);
  fields.Read(&stat.end_code);
  fields.Read(&stat.start_stack);
  fields.Skip(9);  // kstkesp kstkeip signal blocked sigignore sigcatch wchan nswap cnswap
  fields.Read(&stat.exit_signal);
  fields.Read(&stat.last_cpu);
  fields.Read(&stat.realtime_priority);
  fields.Read(&stat.policy);
  fields.Skip(3);  // delayacct_blkio_ticks guest_time cguest_time
  fields.Read(&stat.start_data);
  fields.Read(&stat.end_data);
  fields.Read(&stat.start_brk);
  fields.Read(&stat.arg_start);
  fields.Read(&stat.arg_end);
  fields.Read(&stat.env_start);
  fields.Read(&stat.env_end);
  fields.Read(&stat.exit_code);
  if (!fields.ok()) {
    return absl::DataLossError(absl::StrCat("stat line too short: \"", text.substr(0, 400), "\""));
  }
  return stat;
}

absl::StatusOr<StatusFields> ParseStatus(absl::string_view text) {
  StatusFields status;
  bool has_pid = false;
  for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(line, absl::MaxSplits(":\t", 1));
    const absl::string_view value = absl::StripAsciiWhitespace(parts.second);
    if (parts.first == "Name") {
      status.name = std::string(parts.second);  // escaped by the kernel; spaces belong to it
    } else if (!SetStatusField(parts.first, value, &status)) {
      return absl::DataLossError(absl::StrCat("not a line of status: \"", line, "\""));
    }
    has_pid |= parts.first == "Pid";
  }
  if (!has_pid) return absl::DataLossError("status has no Pid line");
  return status;
}

absl::StatusOr<SyscallState> ParseSyscall(absl::string_view text) {
  SyscallState state;
  const absl::string_view line = absl::StripSuffix(text, "\n");
  if (line == "running") {
    state.running = true;
    return state;
  }
  const std::vector<absl::string_view> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
  // "-1 SP PC" outside a call, "NR ARG1..6 SP PC" inside.
  bool ok = (words.size() == 3 || words.size() == 9) && absl::SimpleAtoi(words[0], &state.number);
  if (ok && words.size() == 9) {
    for (size_t i = 0; i < 6; ++i) ok &= absl::SimpleHexAtoi(words[1 + i], &state.arguments[i]);
  }
  if (ok) {
    ok = absl::SimpleHexAtoi(words[words.size() - 2], &state.stack_pointer) &&
         absl::SimpleHexAtoi(words[words.size() - 1], &state.instruction_pointer);
  }
  if (!ok) return absl::DataLossError(absl::StrCat("not a syscall line: \"", line, "\""));
  return state;
}

absl::StatusOr<std::vector<ResourceLimit>> ParseLimits(absl::string_view text) {
  static constexpr std::pair<absl::string_view, int> kNames[] = {
      {"Max cpu time", RLIMIT_CPU},
      {"Max file size", RLIMIT_FSIZE},
      {"Max data size", RLIMIT_DATA},
      {"Max stack size", RLIMIT_STACK},
      {"Max core file size", RLIMIT_CORE},
      {"Max resident set", RLIMIT_RSS},
      {"Max processes", RLIMIT_NPROC},
      {"Max open files", RLIMIT_NOFILE},
      {"Max locked memory", RLIMIT_MEMLOCK},
      {"Max address space", RLIMIT_AS},
      {"Max file locks", RLIMIT_LOCKS},
      {"Max pending signals", RLIMIT_SIGPENDING},
      {"Max msgqueue size", RLIMIT_MSGQUEUE},
      {"Max nice priority", RLIMIT_NICE},
      {"Max realtime priority", RLIMIT_RTPRIO},
      {"Max realtime timeout", RLIMIT_RTTIME},
  };
  const auto parse = [](absl::string_view word, rlim_t* out) {
    if (word == "unlimited") {
      *out = RLIM_INFINITY;
      return true;
    }
    return absl::SimpleAtoi(word, out);
  };
  std::vector<ResourceLimit> limits;
  for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    if (absl::StartsWith(line, "Limit ")) continue;
    // "%-25s %-20s %-20s %-10s": the name has fixed width because it holds spaces.
    ResourceLimit limit;
    if (line.size() < 27) return absl::DataLossError(absl::StrCat("limits line: \"", line, "\""));
    limit.name = std::string(absl::StripAsciiWhitespace(line.substr(0, 25)));
    for (const auto& [name, resource] : kNames) {
      if (limit.name == name) limit.resource = resource;
    }
    const std::vector<absl::string_view> words =
        absl::StrSplit(line.substr(25), ' ', absl::SkipEmpty());
    if (words.size() < 2 || !parse(words[0], &limit.soft) || !parse(words[1], &limit.hard)) {
      return absl::DataLossError(absl::StrCat("limits line: \"", line, "\""));
    }
    limits.push_back(std::move(limit));
  }
  return limits;
}

absl::StatusOr<std::vector<std::pair<uint64_t, uint64_t>>> ParseAuxv(absl::string_view bytes) {
  std::vector<std::pair<uint64_t, uint64_t>> pairs;
  for (size_t at = 0; at + 16 <= bytes.size(); at += 16) {
    uint64_t pair[2];
    memcpy(pair, bytes.data() + at, sizeof pair);
    if (pair[0] == 0) return pairs;  // AT_NULL
    pairs.emplace_back(pair[0], pair[1]);
  }
  return absl::DataLossError("auxv without AT_NULL");
}

}  // namespace predump::kernel
