// A userfaultfd (usually that of another process) used for asynchronous write protection.
//
// I1: destruction closes the descriptor, which unregisters all it ever registered; on large
//     registrations unregister in pieces first (DESIGN 5), closing at once stalls the target.
// Thread rule: const calls may run in any thread.
#ifndef PREDUMP_KERNEL_USERFAULTFD_H_
#define PREDUMP_KERNEL_USERFAULTFD_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/base/unique_fd.h"
#include "src/base/units.h"

namespace predump::kernel {

class Userfaultfd {
 public:
  explicit Userfaultfd(base::UniqueFd fd) : fd_(std::move(fd)) {}
  // One of our own process: userfaultfd(2), user mode only where the full one is not permitted.
  static absl::StatusOr<Userfaultfd> CreateForSelf();

  // UFFDIO_API with UFFD_FEATURE_WP_ASYNC (Linux 6.7) and WP_UNPOPULATED (6.4). Once per
  // descriptor. Errors: Unimplemented the kernel lacks them.
  absl::Status EnableWriteProtectAsync() const;
  // UFFDIO_REGISTER in write-protect mode. `range` is page-aligned; one mapping or several without
  // a hole. Errors: EBUSY another userfaultfd has it; EINVAL unmapped or of a kind that cannot be
  // registered; EPERM; TargetExited (ESRCH) the memory is gone.
  absl::Status Register(base::AddressRange range) const;
  // UFFDIO_UNREGISTER; ranges not registered are passed over.
  absl::Status Unregister(base::AddressRange range) const;

  int fd() const { return fd_.get(); }

 private:
  base::UniqueFd fd_;
};

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_USERFAULTFD_H_
