#include "src/checkpoint/plain_outside.h"

#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "src/base/errors.h"
#include "src/kernel/procfs.h"
#include "src/kernel/uapi_sched_attr.h"

namespace predump::checkpoint {
namespace {

constexpr int kDefaultPriority = 120;  // of nice 0
constexpr int kIoprioWhoProcess = 1;   // ioprio_get(2)
constexpr int kIoprioClassShift = 13;
constexpr uint64_t kResetOnFork = 1;      // SCHED_FLAG_RESET_ON_FORK
constexpr int kDumpFilterShift = 2;       // mm->flags: 2 bits of "dumpable", then the filter
constexpr uint32_t kSignalStopped = 1;    // SIGNAL_STOP_STOPPED
constexpr uint64_t kNoNewPrivileges = 1;  // PFA_* of include/linux/sched.h
constexpr uint64_t kStoreBypassDisabled = 1 << 3;
constexpr uint64_t kIndirectBranchDisabled = 1 << 5;

// One line of /proc/PID/status, without its name.
absl::string_view StatusLine(absl::string_view text, absl::string_view name) {
  const size_t at = text.find(absl::StrCat("\n", name, ":"));
  if (at == absl::string_view::npos) return "";
  text.remove_prefix(at + 1);
  return text.substr(0, text.find('\n'));
}

uint64_t AtomicFlags(absl::string_view text, const kernel::StatusFields& status) {
  uint64_t flags = status.no_new_privileges ? kNoNewPrivileges : 0;
  if (absl::StrContains(StatusLine(text, "Speculation_Store_Bypass"), "thread") &&
      absl::StrContains(StatusLine(text, "Speculation_Store_Bypass"), "mitigated")) {
    flags |= kStoreBypassDisabled;
  }
  if (absl::StrContains(StatusLine(text, "SpeculationIndirectBranch"), "conditional") &&
      absl::StrContains(StatusLine(text, "SpeculationIndirectBranch"), "disabled")) {
    flags |= kIndirectBranchDisabled;
  }
  return flags;
}

// What a thread is allowed to do, as text: equal texts are equal credentials.
std::string CredentialsText(absl::string_view status) {
  std::string text;
  for (const char* name :
       {"Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}) {
    absl::StrAppend(&text, StatusLine(status, name), "\n");
  }
  return text;
}

absl::Status FillScheduling(const kernel::ProcessHandle& process, pid_t tid,
                            const kernel::StatFields& stat, kernel::ThreadRecord& record) {
  record.policy = stat.policy;
  record.realtime_priority = stat.realtime_priority;
  record.static_priority = static_cast<int32_t>(stat.nice) + kDefaultPriority;
  kernel::SchedAttributes attributes = {};
  if (::syscall(SYS_sched_getattr, tid, &attributes, sizeof attributes, 0) != 0) {
    return process.ErrorFor(errno, "sched_getattr");
  }
  // A slice that nobody asked for is the one that we have, too.
  kernel::SchedAttributes ours = {};
  if (::syscall(SYS_sched_getattr, 0, &ours, sizeof ours, 0) == 0 && ours.policy != SCHED_FIFO &&
      ours.policy != SCHED_RR && attributes.policy != SCHED_FIFO && attributes.policy != SCHED_RR &&
      attributes.runtime != ours.runtime) {
    record.time_slice = attributes.runtime;
  }
  record.reset_on_fork = (attributes.flags & kResetOnFork) != 0 ? 1 : 0;
  const long priority = ::syscall(SYS_ioprio_get, kIoprioWhoProcess, tid);
  if (priority < 0) return process.ErrorFor(errno, "ioprio_get");
  // Without a class none was set: what is told then is the default of the day.
  record.io_priority = priority >> kIoprioClassShift == 0 ? 0 : static_cast<uint32_t>(priority);
  return absl::OkStatus();
}

absl::StatusOr<kernel::ThreadRecord> ReadThread(
    const kernel::ProcessHandle& process, pid_t tid,
    absl::flat_hash_map<std::string, uint64_t>& credentials) {
  kernel::ThreadRecord record = {};
  PREDUMP_ASSIGN_OR_RETURN(const std::string text, kernel::ReadThreadFile(process, tid, "status"));
  PREDUMP_ASSIGN_OR_RETURN(const kernel::StatusFields status, kernel::ParseStatus(text));
  PREDUMP_ASSIGN_OR_RETURN(const kernel::StatFields stat, kernel::ReadThreadStat(process, tid));
  record.tid.observer = tid;
  record.tid.own = status.namespace_pids.empty() ? tid : status.namespace_pids.back();
  record.tid.level = static_cast<int32_t>(status.namespace_pids.size()) - 1;
  memcpy(record.comm, stat.comm.data(), std::min(stat.comm.size(), sizeof record.comm - 1));
  record.blocked = status.blocked;
  record.pending = status.pending_thread;
  record.voluntary_switches = status.voluntary_switches;
  PREDUMP_ASSIGN_OR_RETURN(const std::string personality,
                           kernel::ReadThreadFile(process, tid, "personality"));
  if (!absl::SimpleHexAtoi(absl::StripAsciiWhitespace(personality), &record.personality)) {
    return absl::DataLossError(absl::StrCat("personality of thread ", tid, " is no number"));
  }
  record.flags = stat.flags;
  record.atomic_flags = AtomicFlags(text, status);
  record.seccomp_mode = status.seccomp_mode;
  record.seccomp_filters = status.seccomp_filters;
  record.exit_signal = stat.exit_signal;
  record.has_mm = status.has_memory ? 1 : 0;
  record.credentials =
      credentials.try_emplace(CredentialsText(text), credentials.size() + 1).first->second;
  void* list = nullptr;
  size_t bytes = 0;
  if (::syscall(SYS_get_robust_list, tid, &list, &bytes) != 0) {
    return process.ErrorFor(errno, "get_robust_list");
  }
  record.robust_list = reinterpret_cast<uint64_t>(list);
  record.robust_list_bytes = bytes;
  PREDUMP_RETURN_IF_ERROR(FillScheduling(process, tid, stat, record));
  return record;
}

absl::StatusOr<uint32_t> CountPosixTimers(const kernel::ProcessHandle& process) {
  const auto text = kernel::ReadProcFile(process, "timers");
  if (absl::IsNotFound(text.status())) {
    return absl::FailedPreconditionError(
        "this kernel does not list POSIX timers (CONFIG_CHECKPOINT_RESTORE), and there is no BPF");
  }
  PREDUMP_RETURN_IF_ERROR(text);
  uint32_t count = 0;
  for (const absl::string_view line : absl::StrSplit(*text, '\n')) {
    if (absl::StartsWith(line, "ID:")) ++count;
  }
  return count;
}

// Files that some kernels do not have give 0 there: what they tell cannot have been changed.
absl::StatusOr<uint64_t> ReadDumpFilter(const kernel::ProcessHandle& process) {
  const auto text = kernel::ReadProcFile(process, "coredump_filter");
  if (absl::IsNotFound(text.status())) return 0;
  PREDUMP_RETURN_IF_ERROR(text);
  uint64_t filter = 0;
  if (!absl::SimpleHexAtoi(absl::StripAsciiWhitespace(*text), &filter)) {
    return absl::DataLossError("/proc/PID/coredump_filter is no number");
  }
  return filter;
}

absl::StatusOr<bool> MayMergeAny(const kernel::ProcessHandle& process) {
  const auto text = kernel::ReadProcFile(process, "ksm_stat");
  if (absl::IsNotFound(text.status())) return false;
  PREDUMP_RETURN_IF_ERROR(text);
  return absl::StrContains(*text, "ksm_merge_any: yes");
}

absl::Status FillProcess(const kernel::ProcessHandle& process, kernel::ProcessRecord& record) {
  PREDUMP_ASSIGN_OR_RETURN(const kernel::StatusFields status, kernel::ReadStatus(process));
  PREDUMP_ASSIGN_OR_RETURN(const kernel::StatFields stat, kernel::ReadStat(process));
  record.tgid.observer = process.pid();
  record.tgid.own = status.namespace_pids.empty() ? process.pid() : status.namespace_pids.back();
  record.shared_pending = status.pending_process;
  record.thread_count = status.thread_count;
  record.signal_flags = status.state == 'T' ? kSignalStopped : 0;
  record.has_tty = stat.tty != 0 ? 1 : 0;
  record.umask = status.umask;
  record.start_code = stat.start_code;
  record.end_code = stat.end_code;
  record.start_data = stat.start_data;
  record.end_data = stat.end_data;
  record.start_brk = stat.start_brk;
  record.brk = stat.start_brk;
  record.start_stack = stat.start_stack;
  record.arg_start = stat.arg_start;
  record.arg_end = stat.arg_end;
  record.env_start = stat.env_start;
  record.env_end = stat.env_end;
  record.has_mm = status.has_memory ? 1 : 0;
  record.thp_disabled = status.thp_enabled ? 0 : 1;
  PREDUMP_ASSIGN_OR_RETURN(record.oom_score_adj, kernel::ReadOomScoreAdj(process));
  PREDUMP_ASSIGN_OR_RETURN(record.posix_timer_count, CountPosixTimers(process));
  PREDUMP_ASSIGN_OR_RETURN(const uint64_t filter, ReadDumpFilter(process));
  record.mm_flags = filter << kDumpFilterShift;
  PREDUMP_ASSIGN_OR_RETURN(const bool merges, MayMergeAny(process));
  record.memory_merge_any = merges ? 1 : 0;
  PREDUMP_ASSIGN_OR_RETURN(const auto limits, kernel::ReadLimits(process));
  for (const kernel::ResourceLimit& limit : limits) {
    if (limit.resource < 0 || limit.resource >= kernel::kResourceLimits) continue;
    record.resource_limits[limit.resource][0] = limit.soft;
    record.resource_limits[limit.resource][1] = limit.hard;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<kernel::TaskSnapshot> SnapshotFromOutside(const kernel::ProcessHandle& process) {
  kernel::TaskSnapshot snapshot;
  PREDUMP_RETURN_IF_ERROR(FillProcess(process, snapshot.process));
  PREDUMP_ASSIGN_OR_RETURN(std::vector<pid_t> tids, kernel::ListThreads(process));
  std::stable_partition(tids.begin(), tids.end(), [&](pid_t tid) { return tid == process.pid(); });
  absl::flat_hash_map<std::string, uint64_t> credentials;
  for (const pid_t tid : tids) {
    const auto record = ReadThread(process, tid, credentials);
    // Of a running process threads may end meanwhile.
    if (base::IsTargetExited(record.status()) && tid != process.pid()) continue;
    PREDUMP_RETURN_IF_ERROR(record);
    snapshot.threads.push_back(*record);
  }
  if (snapshot.threads.empty()) {
    return base::TargetExited(absl::StrCat("process ", process.pid()));
  }
  return snapshot;
}

}  // namespace predump::checkpoint
