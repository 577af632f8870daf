#include "src/kernel/procfs_task.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "src/base/errors.h"

namespace predump::kernel {
namespace {

// A thread of a living process may be gone on its own.
absl::Status TaskError(const ProcessHandle& process, int error_number, absl::string_view name) {
  const bool in_task = name.substr(0, 5) == "task/";
  if (error_number == ESRCH || (error_number == ENOENT && in_task)) {
    return base::TargetExited(
        absl::StrCat("no such task any more: /proc/", process.pid(), "/", name));
  }
  return process.ErrorFor(error_number, absl::StrCat("read /proc/", process.pid(), "/", name));
}

std::string ThreadPath(pid_t tid, absl::string_view name) {
  return absl::StrCat("task/", tid, "/", name);
}

absl::StatusOr<base::UniqueFd> OpenAt(const ProcessHandle& process, const std::string& name,
                                      int flags) {
  base::UniqueFd fd(::openat(process.proc_fd(), name.c_str(), flags | O_CLOEXEC));
  if (!fd.valid()) return TaskError(process, errno, name);
  return fd;
}

// The names of a /proc directory; "." and ".." are left out.
absl::StatusOr<std::vector<std::string>> ListDirectory(const ProcessHandle& process,
                                                       const std::string& name) {
  PREDUMP_ASSIGN_OR_RETURN(base::UniqueFd fd, OpenAt(process, name, O_RDONLY | O_DIRECTORY));
  std::vector<std::string> names;
  alignas(struct dirent64) char buffer[16384];
  for (;;) {
    const long bytes = ::syscall(SYS_getdents64, fd.get(), buffer, sizeof buffer);
    if (bytes < 0) return TaskError(process, errno, name);
    if (bytes == 0) return names;
    for (long at = 0; at < bytes;) {
      const auto* entry = reinterpret_cast<const struct dirent64*>(buffer + at);
      if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
      at += entry->d_reclen;
    }
  }
}

template <typename Number>
absl::StatusOr<std::vector<Number>> SortedNumbers(const std::vector<std::string>& names) {
  std::vector<Number> numbers;
  numbers.reserve(names.size());
  for (const std::string& name : names) {
    Number number = 0;
    if (absl::SimpleAtoi(name, &number)) numbers.push_back(number);
  }
  std::sort(numbers.begin(), numbers.end());
  return numbers;
}

template <typename Number>
absl::StatusOr<Number> ReadNumber(const ProcessHandle& process, absl::string_view name) {
  PREDUMP_ASSIGN_OR_RETURN(const std::string text, ReadProcFile(process, name));
  Number number = 0;
  if (!absl::SimpleAtoi(absl::StripSuffix(text, "\n"), &number)) {
    return absl::DataLossError(absl::StrCat(name, " is not a number: \"", text, "\""));
  }
  return number;
}

}  // namespace

absl::StatusOr<std::string> ReadProcFile(const ProcessHandle& process, absl::string_view name) {
  const std::string path(name);
  PREDUMP_ASSIGN_OR_RETURN(base::UniqueFd fd, OpenAt(process, path, O_RDONLY));
  std::string text;
  size_t used = 0;
  for (;;) {
    // Growing reads: seq files give a page at a time unless asked for more.
    if (text.size() - used < 2048) text.resize(std::max<size_t>(4096, text.size() * 2));
    const ssize_t got = ::read(fd.get(), text.data() + used, text.size() - used);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return TaskError(process, errno, name);
    if (got == 0) break;
    used += static_cast<size_t>(got);
  }
  text.resize(used);
  return text;
}

absl::StatusOr<std::string> ReadThreadFile(const ProcessHandle& process, pid_t tid,
                                           absl::string_view name) {
  return ReadProcFile(process, ThreadPath(tid, name));
}

absl::StatusOr<std::string> ReadProcLink(const ProcessHandle& process, absl::string_view name) {
  const std::string path(name);
  std::string target(4096, '\0');
  const ssize_t length =
      ::readlinkat(process.proc_fd(), path.c_str(), target.data(), target.size());
  if (length < 0) return TaskError(process, errno, name);
  target.resize(static_cast<size_t>(length));
  return target;
}

absl::StatusOr<StatFields> ReadStat(const ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(const std::string text, ReadProcFile(process, "stat"));
  return ParseStat(text);
}

absl::StatusOr<StatFields> ReadThreadStat(const ProcessHandle& process, pid_t tid) {
  PREDUMP_ASSIGN_OR_RETURN(const std::string text, ReadThreadFile(process, tid, "stat"));
  return ParseStat(text);
}

absl::StatusOr<StatusFields> ReadStatus(const ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(const std::string text, ReadProcFile(process, "status"));
  return ParseStatus(text);
}

absl::StatusOr<StatusFields> ReadThreadStatus(const ProcessHandle& process, pid_t tid) {
  PREDUMP_ASSIGN_OR_RETURN(const std::string text, ReadThreadFile(process, tid, "status"));
  return ParseStatus(text);
}

absl::StatusOr<SyscallState> ReadThreadSyscall(const ProcessHandle& process, pid_t tid) {
  PREDUMP_ASSIGN_OR_RETURN(const std::string text, ReadThreadFile(process, tid, "syscall"));
  return ParseSyscall(text);
}

absl::StatusOr<std::vector<pid_t>> ListThreads(const ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(process, "task"));
  // The directory of an exited process lists nothing.
  if (names.empty()) {
    return base::TargetExited(absl::StrCat("process ", process.pid(), " has exited"));
  }
  return SortedNumbers<pid_t>(names);
}

absl::StatusOr<std::vector<int>> ListDescriptors(const ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(process, "fd"));
  return SortedNumbers<int>(names);
}

absl::StatusOr<std::vector<pid_t>> ListChildren(const ProcessHandle& process, pid_t tid) {
  PREDUMP_ASSIGN_OR_RETURN(const std::string text, ReadThreadFile(process, tid, "children"));
  return SortedNumbers<pid_t>(absl::StrSplit(text, ' ', absl::SkipWhitespace()));
}

absl::StatusOr<std::vector<NamespaceId>> ListNamespaces(const ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(std::vector<std::string> names, ListDirectory(process, "ns"));
  std::sort(names.begin(), names.end());
  std::vector<NamespaceId> namespaces;
  for (std::string& name : names) {
    struct stat info;
    const std::string path = absl::StrCat("ns/", name);
    if (::fstatat(process.proc_fd(), path.c_str(), &info, 0) != 0) {
      // A pid namespace for children that has no init yet (unshare without a fork) has no file.
      if (errno == ENOENT && name == "pid_for_children") continue;
      return TaskError(process, errno, path);
    }
    namespaces.push_back({std::move(name), info.st_dev, info.st_ino});
  }
  return namespaces;
}

absl::StatusOr<std::vector<ResourceLimit>> ReadLimits(const ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(const std::string text, ReadProcFile(process, "limits"));
  return ParseLimits(text);
}

absl::StatusOr<std::vector<std::pair<uint64_t, uint64_t>>> ReadAuxv(const ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(const std::string bytes, ReadProcFile(process, "auxv"));
  return ParseAuxv(bytes);
}

absl::StatusOr<std::string> ReadComm(const ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(std::string text, ReadProcFile(process, "comm"));
  return std::string(absl::StripSuffix(text, "\n"));
}

absl::StatusOr<std::string> ReadThreadComm(const ProcessHandle& process, pid_t tid) {
  PREDUMP_ASSIGN_OR_RETURN(std::string text, ReadThreadFile(process, tid, "comm"));
  return std::string(absl::StripSuffix(text, "\n"));
}

absl::StatusOr<std::string> ReadThreadWaitChannel(const ProcessHandle& process, pid_t tid) {
  return ReadThreadFile(process, tid, "wchan");
}

absl::StatusOr<uint32_t> ReadPersonality(const ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(const std::string text, ReadProcFile(process, "personality"));
  uint32_t personality = 0;
  if (!absl::SimpleHexAtoi(absl::StripSuffix(text, "\n"), &personality)) {
    return absl::DataLossError(absl::StrCat("personality: \"", text, "\""));
  }
  return personality;
}

absl::StatusOr<int> ReadOomScoreAdj(const ProcessHandle& process) {
  return ReadNumber<int>(process, "oom_score_adj");
}

absl::StatusOr<uint32_t> ReadLoginUid(const ProcessHandle& process) {
  return ReadNumber<uint32_t>(process, "loginuid");
}

}  // namespace predump::kernel
