// /proc/PID/fdinfo/N and /proc/PID/timers as keys and values.
//
// Thread rule: values and free functions. Parse... functions are pure and take the file's text.
#ifndef PREDUMP_KERNEL_PROCFS_FD_H_
#define PREDUMP_KERNEL_PROCFS_FD_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "src/kernel/process.h"

namespace predump::kernel {

// Lines "key: value" in order; a key may come more than once (epoll's tfd, inotify, locks).
struct FdInfo {
  int64_t position = 0;
  uint32_t flags = 0;  // open(2) flags, O_CLOEXEC included
  int mount_id = -1;
  uint64_t inode = 0;
  // Every line, the four above included. Lines whose first word ends in no colon ("inotify wd:1
  // ino:...", "fanotify ...") have that word as key and the rest as value.
  std::vector<std::pair<std::string, std::string>> lines;

  // The first value of `key`.
  std::optional<absl::string_view> Find(absl::string_view key) const;
};

absl::StatusOr<FdInfo> ParseFdInfo(absl::string_view text);
absl::StatusOr<FdInfo> ReadFdInfo(const ProcessHandle& process, int fd);

// One POSIX timer, /proc/PID/timers (proc_pid_timers(5), Linux 3.10, CONFIG_POSIX_TIMERS).
struct PosixTimer {
  int id = 0;
  int signal_number = 0;
  uint64_t signal_value = 0;  // sival_ptr
  // "signal", "none" or "thread", and the tid behind '.' where the kind is a tid.
  std::string notify;
  bool notify_is_tid = false;
  pid_t notify_pid = 0;
  int clock = 0;  // CLOCK_*
};

absl::StatusOr<std::vector<PosixTimer>> ParseTimers(absl::string_view text);
absl::StatusOr<std::vector<PosixTimer>> ReadTimers(const ProcessHandle& process);

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_PROCFS_FD_H_
