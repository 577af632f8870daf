#include "src/kernel/process_identity.h"

#include <errno.h>
#include <sys/stat.h>

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "src/base/atomic_file.h"
#include "src/base/errors.h"

namespace predump::kernel {

absl::StatusOr<std::string> ReadBootId() {
  PREDUMP_ASSIGN_OR_RETURN(const std::string text,
                           base::ReadWholeFile("/proc/sys/kernel/random/boot_id"));
  return std::string(absl::StripAsciiWhitespace(text));
}

absl::StatusOr<uint64_t> OwnPidNamespace() {
  struct stat st;
  if (::stat("/proc/self/ns/pid", &st) != 0) {
    return base::ErrnoError(errno, "stat /proc/self/ns/pid");
  }
  return static_cast<uint64_t>(st.st_ino);
}

absl::StatusOr<ProcessIdentity> ProcessIdentity::Of(const ProcessHandle& process) {
  ProcessIdentity identity;
  identity.pid = process.pid();
  identity.start_time_ticks = process.start_time_ticks();
  PREDUMP_ASSIGN_OR_RETURN(identity.boot_id, ReadBootId());
  PREDUMP_ASSIGN_OR_RETURN(identity.pid_namespace, OwnPidNamespace());
  return identity;
}

absl::StatusOr<std::optional<ProcessHandle>> FindProcess(const ProcessIdentity& identity) {
  PREDUMP_ASSIGN_OR_RETURN(const std::string boot_id, ReadBootId());
  if (boot_id != identity.boot_id) return std::nullopt;
  PREDUMP_ASSIGN_OR_RETURN(const uint64_t pid_namespace, OwnPidNamespace());
  if (identity.pid_namespace != 0 && identity.pid_namespace != pid_namespace) {
    return absl::FailedPreconditionError(absl::StrCat(
        "process ", identity.pid, " has that number in another pid namespace (",
        identity.pid_namespace, ", ours is ", pid_namespace, "); start predump there"));
  }
  absl::StatusOr<ProcessHandle> process = ProcessHandle::Open(identity.pid);
  if (base::IsTargetExited(process.status())) return std::nullopt;
  // The number now names a thread of somebody else, or a kernel thread.
  if (absl::IsInvalidArgument(process.status()) || absl::IsFailedPrecondition(process.status())) {
    return std::nullopt;
  }
  PREDUMP_RETURN_IF_ERROR(process);
  if (process->start_time_ticks() != identity.start_time_ticks) return std::nullopt;
  return std::optional<ProcessHandle>(*std::move(process));
}

}  // namespace predump::kernel
