#include "src/restore/requirement_check.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/base/unique_fd.h"
#include "src/images/image_set.h"
#include "src/restore/try_in_child.h"

namespace predump::restore::internal {
namespace {

// As the server will write it for the process, which inherits the server's lowest value.
absl::Status CheckOomScore(const criu::task_core_entry& task, Blockers& blockers) {
  if (!task.has_oom_score_adj()) return absl::OkStatus();
  const std::string text = absl::StrCat(task.oom_score_adj());
  PREDUMP_ASSIGN_OR_RETURN(const int error, TryInChild([&] {
                             const int fd =
                                 ::open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
                             return fd >= 0 && ::write(fd, text.data(), text.size()) ==
                                                   static_cast<ssize_t>(text.size());
                           }));
  if (error != 0) {
    AddBlocker(blockers, "attribute oom_score_adj",
               absl::StrCat(text, " cannot be given on this host: ", ::strerror(error)),
               "start predump with that value, or with CAP_SYS_RESOURCE");
  }
  return absl::OkStatus();
}

// All of a mask has to be there: the kernel would take what is, and forget the rest.
bool TakeAffinity(const std::string& wanted) {
  if (::syscall(SYS_sched_setaffinity, 0, wanted.size(), wanted.data()) != 0) return false;
  char got[8192] = {};
  if (::syscall(SYS_sched_getaffinity, 0, sizeof got, got) < 0) return false;
  errno = EINVAL;
  return ::memcmp(wanted.data(), got, std::min(wanted.size(), sizeof got)) == 0;
}

std::string CpuList(const std::string& mask) {
  std::string list;
  for (size_t cpu = 0; cpu < mask.size() * 8; ++cpu) {
    if ((static_cast<unsigned char>(mask[cpu / 8]) >> cpu % 8 & 1) == 0) continue;
    absl::StrAppend(&list, list.empty() ? "" : ",", cpu);
  }
  return list;
}

absl::Status CheckAffinity(const proto::ProcessState& preview, Blockers& blockers) {
  std::set<std::string> masks;
  for (const auto& thread : preview.threads()) {
    const std::string& mask = thread.extra().cpu_affinity();
    if (mask.empty() || !masks.insert(mask).second) continue;
    PREDUMP_ASSIGN_OR_RETURN(const int error, TryInChild([&] { return TakeAffinity(mask); }));
    if (error == 0) continue;
    AddBlocker(blockers, absl::StrCat("thread ", thread.tid()),
               absl::StrCat("is confined to the processors ", CpuList(mask),
                            ", not all of which predump may use on this host"),
               "let it run on others as well (taskset -ap)");
  }
  return absl::OkStatus();
}

void CheckNumbers(const proto::Begin& begin, Blockers& blockers) {
  uint32_t limit = 0;
  if (!(std::ifstream("/proc/sys/kernel/pid_max") >> limit)) return;
  std::set<uint32_t> ids(begin.tids().begin(), begin.tids().end());
  ids.insert(begin.pid());
  const uint32_t highest = *ids.rbegin();
  if (highest < limit) return;
  AddBlocker(blockers, absl::StrCat("pid ", highest),
             absl::StrCat("is not below kernel.pid_max (", limit, ")"),
             "raise it on this host, or give it a pid namespace of its own (--new-pidns)");
}

absl::Status CheckPipes(const proto::ProcessState& preview, Blockers& blockers) {
  uint32_t largest = 0;
  for (const auto& pipe : preview.pipes()) largest = std::max(largest, pipe.entry().size());
  if (largest == 0) return absl::OkStatus();
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return base::ErrnoError(errno, "pipe2");
  const base::UniqueFd reader(ends[0]);
  const base::UniqueFd writer(ends[1]);
  if (::fcntl(reader.get(), F_SETPIPE_SZ, largest) < 0) {
    AddBlocker(blockers, "pipe",
               absl::StrCat("its capacity of ", largest,
                            " bytes cannot be had on this host: ", ::strerror(errno)),
               "raise fs.pipe-max-size on this host");
  }
  return absl::OkStatus();
}

// By path, with the flags that the file will be opened with.
std::map<std::string, int> WrittenFiles(const proto::ProcessState& preview) {
  const images::FileIndex files(preview);
  std::map<std::string, int> written;
  for (const auto& descriptor : preview.descriptors()) {
    const criu::reg_file_entry* file = files.FindRegular(descriptor.id());
    if (file == nullptr || (file->flags() & O_ACCMODE) == O_RDONLY) continue;
    written[file->name()] |= static_cast<int>(file->flags() & (O_ACCMODE | O_DIRECT | O_NOATIME));
  }
  for (const auto& vma : preview.mm().vmas()) {
    if ((vma.flags() & MAP_SHARED) == 0 || (vma.fdflags() & O_ACCMODE) == O_RDONLY) continue;
    const criu::reg_file_entry* file = files.FindRegular(static_cast<uint32_t>(vma.shmid()));
    if (file != nullptr) written[file->name()] |= O_RDWR;
  }
  return written;
}

void CheckWriting(const proto::ProcessState& preview, Blockers& blockers) {
  for (const auto& [path, flags] : WrittenFiles(preview)) {
    struct stat info;
    // What is not there has been named by the check of files.
    if (::stat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) continue;
    const int access = (flags & O_RDWR) != 0 ? O_RDWR : O_WRONLY;
    const base::UniqueFd file(
        ::open(path.c_str(), access | (flags & ~O_ACCMODE) | O_CLOEXEC | O_NONBLOCK));
    if (file.valid()) continue;
    AddBlocker(blockers, absl::StrCat("file ", path),
               absl::StrCat("cannot be opened for writing on this host: ", ::strerror(errno)));
  }
}

}  // namespace

absl::Status FindUnmetRequirements(const proto::Begin& begin, bool new_pid_namespace,
                                   Blockers& blockers) {
  const proto::ProcessState& preview = begin.preview();
  if (!new_pid_namespace) CheckNumbers(begin, blockers);
  PREDUMP_RETURN_IF_ERROR(CheckPipes(preview, blockers));
  CheckWriting(preview, blockers);
  if (preview.threads_size() == 0) return absl::OkStatus();
  PREDUMP_RETURN_IF_ERROR(CheckOomScore(preview.threads(0).core().tc(), blockers));
  return CheckAffinity(preview, blockers);
}

}  // namespace predump::restore::internal
