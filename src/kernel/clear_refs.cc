#include "src/kernel/clear_refs.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "src/base/errors.h"

namespace predump::kernel {

absl::StatusOr<ClearRefs> ClearRefs::Open(const ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(base::UniqueFd fd, process.OpenProc("clear_refs", O_WRONLY));
  return ClearRefs(std::move(fd), process);
}

absl::Status ClearRefs::ResetSoftDirty() const {
  while (::write(fd_.get(), "4", 1) < 0) {
    if (errno != EINTR) return process_->ErrorFor(errno, "write 4 to clear_refs");
  }
  // A process that has exited has no memory to reset, and the kernel says nothing about it.
  PREDUMP_ASSIGN_OR_RETURN(const bool exited, process_->HasExited());
  return exited ? process_->ErrorFor(ESRCH, "write 4 to clear_refs") : absl::OkStatus();
}

}  // namespace predump::kernel
