// What /proc/PID and /proc/PID/task/TID tell about tasks: stat, status, and the small files.
//
// Thread rule: values and free functions. Parse... functions are pure and take the file's text.
// Errors of the Read... functions: TargetExited when the process or thread is gone; DataLoss when
// the text is not of the documented form; else from errno.
#ifndef PREDUMP_KERNEL_PROCFS_TASK_H_
#define PREDUMP_KERNEL_PROCFS_TASK_H_

#include <sys/resource.h>
#include <sys/types.h>

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "src/kernel/process.h"

namespace predump::kernel {

// /proc/PID/stat, proc_pid_stat(5). Addresses are 0 without ptrace access to the process.
struct StatFields {
  pid_t pid = 0;
  std::string comm;
  char state = 0;  // R S D T t Z X I
  pid_t ppid = 0;
  pid_t process_group = 0;
  pid_t session = 0;
  int tty = 0;  // device number, 0: none
  pid_t tty_process_group = 0;
  uint32_t flags = 0;  // PF_* of the kernel
  int64_t user_ticks = 0;
  int64_t system_ticks = 0;
  int64_t priority = 0;
  int64_t nice = 0;
  int64_t thread_count = 0;
  uint64_t start_time_ticks = 0;
  uint64_t start_code = 0;
  uint64_t end_code = 0;
  uint64_t start_stack = 0;
  int exit_signal = 0;
  int last_cpu = 0;
  uint32_t realtime_priority = 0;
  uint32_t policy = 0;  // SCHED_*
  uint64_t start_data = 0;
  uint64_t end_data = 0;
  uint64_t start_brk = 0;
  uint64_t arg_start = 0;
  uint64_t arg_end = 0;
  uint64_t env_start = 0;
  uint64_t env_end = 0;
  int exit_code = 0;  // as waitpid(2) gives it
};

// /proc/PID/status. Ids are {real, effective, saved, filesystem}; signal sets are kernel masks
// (bit 0 is signal 1); capability sets are masks of CAP_*.
struct StatusFields {
  std::string name;
  uint32_t umask = 0;
  char state = 0;
  pid_t tgid = 0;
  pid_t pid = 0;
  pid_t ppid = 0;
  pid_t tracer_pid = 0;
  std::array<uid_t, 4> uids{};
  std::array<gid_t, 4> gids{};
  uint32_t fd_table_size = 0;
  std::vector<gid_t> groups;
  std::vector<pid_t> namespace_tgids;     // NStgid, outermost first
  std::vector<pid_t> namespace_pids;      // NSpid
  std::vector<pid_t> namespace_groups;    // NSpgid
  std::vector<pid_t> namespace_sessions;  // NSsid
  bool has_memory = false;                // has a VmSize line: not a kernel thread and not a zombie
  bool core_dumping = false;
  bool thp_enabled = true;
  int thread_count = 0;
  uint64_t queued_signals = 0;  // SigQ
  uint64_t queued_signals_limit = 0;
  uint64_t pending_thread = 0;   // SigPnd
  uint64_t pending_process = 0;  // ShdPnd
  uint64_t blocked = 0;
  uint64_t ignored = 0;
  uint64_t caught = 0;
  uint64_t cap_inheritable = 0;
  uint64_t cap_permitted = 0;
  uint64_t cap_effective = 0;
  uint64_t cap_bounding = 0;
  uint64_t cap_ambient = 0;
  bool no_new_privileges = false;
  int seccomp_mode = 0;  // 0 none, 1 strict, 2 filter
  int seccomp_filters = 0;
  uint64_t voluntary_switches = 0;
};

// /proc/PID/task/TID/syscall: what a blocked thread is blocked in.
struct SyscallState {
  bool running = false;  // "running": on a CPU or about to be
  int64_t number = -1;   // -1: blocked outside a system call
  std::array<uint64_t, 6> arguments{};
  uint64_t stack_pointer = 0;
  uint64_t instruction_pointer = 0;
};

struct NamespaceId {
  std::string name;  // "pid", "pid_for_children", "net", ...
  dev_t device = 0;
  ino_t inode = 0;
  friend bool operator==(const NamespaceId&, const NamespaceId&) = default;
};

struct ResourceLimit {
  std::string name;   // as in /proc/PID/limits, e.g. "Max open files"
  int resource = -1;  // RLIMIT_*, -1 for a name this table does not know
  rlim_t soft = RLIM_INFINITY;
  rlim_t hard = RLIM_INFINITY;
};

absl::StatusOr<StatFields> ParseStat(absl::string_view text);
absl::StatusOr<StatusFields> ParseStatus(absl::string_view text);
absl::StatusOr<SyscallState> ParseSyscall(absl::string_view text);
absl::StatusOr<std::vector<ResourceLimit>> ParseLimits(absl::string_view text);
// Pairs of {AT_* tag, value} up to and without AT_NULL.
absl::StatusOr<std::vector<std::pair<uint64_t, uint64_t>>> ParseAuxv(absl::string_view bytes);

// The whole file /proc/PID/<name>, and /proc/PID/task/TID/<name>.
absl::StatusOr<std::string> ReadProcFile(const ProcessHandle& process, absl::string_view name);
absl::StatusOr<std::string> ReadThreadFile(const ProcessHandle& process, pid_t tid,
                                           absl::string_view name);
// The text of the symbolic link /proc/PID/<name> ("exe", "cwd", "root", "fd/3", "map_files/...").
// A deleted file keeps its " (deleted)".
absl::StatusOr<std::string> ReadProcLink(const ProcessHandle& process, absl::string_view name);

absl::StatusOr<StatFields> ReadStat(const ProcessHandle& process);
absl::StatusOr<StatFields> ReadThreadStat(const ProcessHandle& process, pid_t tid);
absl::StatusOr<StatusFields> ReadStatus(const ProcessHandle& process);
absl::StatusOr<StatusFields> ReadThreadStatus(const ProcessHandle& process, pid_t tid);
absl::StatusOr<SyscallState> ReadThreadSyscall(const ProcessHandle& process, pid_t tid);
// Ascending thread ids; the leader is first unless ids have wrapped around.
absl::StatusOr<std::vector<pid_t>> ListThreads(const ProcessHandle& process);
// Ascending descriptor numbers.
absl::StatusOr<std::vector<int>> ListDescriptors(const ProcessHandle& process);
absl::StatusOr<std::vector<pid_t>> ListChildren(const ProcessHandle& process, pid_t tid);
absl::StatusOr<std::vector<NamespaceId>> ListNamespaces(const ProcessHandle& process);
absl::StatusOr<std::vector<ResourceLimit>> ReadLimits(const ProcessHandle& process);
absl::StatusOr<std::vector<std::pair<uint64_t, uint64_t>>> ReadAuxv(const ProcessHandle& process);

// Names as the kernel keeps them: up to 15 bytes, no trailing newline.
absl::StatusOr<std::string> ReadComm(const ProcessHandle& process);
absl::StatusOr<std::string> ReadThreadComm(const ProcessHandle& process, pid_t tid);
// The kernel function a thread sleeps in, "0" or "" where it does not or may not be told.
absl::StatusOr<std::string> ReadThreadWaitChannel(const ProcessHandle& process, pid_t tid);
absl::StatusOr<uint32_t> ReadPersonality(const ProcessHandle& process);
absl::StatusOr<int> ReadOomScoreAdj(const ProcessHandle& process);
// 4294967295 where none was set; NotFound on a kernel without audit.
absl::StatusOr<uint32_t> ReadLoginUid(const ProcessHandle& process);

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_PROCFS_TASK_H_
