#include "src/kernel/bpf/program.h"

#include <bpf/bpf.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"

namespace predump::kernel::internal {

absl::Status RefusedProgram(int error_number, absl::string_view operation, absl::string_view log) {
  // EACCES is the verifier's word for a bad program; only EPERM speaks of privilege.
  if (error_number == EPERM) return base::ErrnoError(error_number, operation);
  constexpr size_t kLastWords = 400;
  if (log.size() > kLastWords) log.remove_prefix(log.size() - kLastWords);
  return absl::UnimplementedError(
      absl::StrCat(operation, ": ", std::strerror(error_number), log.empty() ? "" : ": ", log));
}

absl::StatusOr<base::UniqueFd> OpenPidfd(pid_t tgid) {
  base::UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, tgid, 0)));
  if (pidfd.valid()) return pidfd;
  if (errno == ESRCH) return base::TargetExited(absl::StrCat("process ", tgid));
  return base::ErrnoError(errno, "pidfd_open ", tgid);
}

absl::Status CheckAlive(const base::UniqueFd& pidfd) {
  if (syscall(SYS_pidfd_send_signal, pidfd.get(), 0, nullptr, 0) == 0) return absl::OkStatus();
  if (errno == ESRCH) return base::TargetExited("observed process");
  return base::ErrnoError(errno, "pidfd_send_signal");
}

absl::StatusOr<Iterator> Iterator::Attach(const bpf_program* program, pid_t tgid) {
  bpf_iter_link_info info = {};
  // By process even where the leader would do: iter/task_vma by thread (info.task.tid) begins anew
  // after its end and so never ends once it needs a second read(2) (seen on 6.18).
  info.task.pid = static_cast<uint32_t>(tgid);
  bpf_iter_attach_opts options = {};
  options.sz = sizeof(options);
  options.link_info = &info;
  options.link_info_len = sizeof(info);
  bpf_link* link = bpf_program__attach_iter(program, &options);
  if (link == nullptr) return RefusedProgram(errno, "attach BPF iterator", "");
  return Iterator(link);
}

absl::Status Iterator::Read(std::vector<char>& bytes) const {
  base::UniqueFd fd(bpf_iter_create(bpf_link__fd(link_.get())));
  if (!fd.valid()) return base::ErrnoError(errno, "bpf(BPF_ITER_CREATE)");
  // The kernel collects up to 32 KiB for each read(2).
  constexpr size_t kChunk = 32 * 1024;
  constexpr size_t kLimit = 1024 * 1024 * 1024;
  size_t filled = 0;
  while (true) {
    if (bytes.size() < filled + kChunk) bytes.resize(2 * (filled + kChunk));
    const ssize_t n = read(fd.get(), bytes.data() + filled, bytes.size() - filled);
    if (n == 0) break;
    if (n > 0) {
      filled += static_cast<size_t>(n);
      if (filled > kLimit) return absl::ResourceExhaustedError("BPF iterator does not end");
    } else if (errno != EINTR && errno != EAGAIN) {
      return base::ErrnoError(errno, "read BPF iterator");
    }
  }
  bytes.resize(filled);
  return absl::OkStatus();
}

absl::Status Observe(const bpf_program* find_process, pid_t tgid, const int& observed_tgid) {
  PREDUMP_ASSIGN_OR_RETURN(const Iterator threads, Iterator::Attach(find_process, tgid));
  std::vector<char> nothing;
  PREDUMP_RETURN_IF_ERROR(threads.Read(nothing));
  if (__atomic_load_n(&observed_tgid, __ATOMIC_RELAXED) > 0) return absl::OkStatus();
  return base::TargetExited(absl::StrCat("process ", tgid));
}

absl::Status AttachTracePoints(
    std::initializer_list<std::pair<const bpf_program*, bpf_link**>> programs) {
  for (const auto& [program, link] : programs) {
    *link = bpf_program__attach(program);
    if (*link == nullptr) {
      return RefusedProgram(
          errno, absl::StrCat("attach BPF trace point ", bpf_program__name(program)), "");
    }
  }
  return absl::OkStatus();
}

}  // namespace predump::kernel::internal
