#include "src/kernel/userfaultfd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"

namespace predump::kernel {
namespace {

// Younger than the headers of Debian 12 (Linux 6.1).
constexpr uint64_t kFeatureWpUnpopulated = 1u << 13;  // 6.4
constexpr uint64_t kFeatureWpAsync = 1u << 15;        // 6.7

struct uffdio_range ToUapi(base::AddressRange range) {
  return {.start = range.start().value(), .len = range.size().value()};
}

absl::Status UffdError(int error_number, absl::string_view what, base::AddressRange range) {
  const std::string text = absl::StrCat(what, " ", range.ToString());
  // The descriptor outlives the memory it was made for: ENOMEM since it cannot take hold of it.
  if (error_number == ESRCH || error_number == ENOMEM) {
    return base::TargetExited(absl::StrCat(text, ": the address space is gone"));
  }
  return base::ErrnoError(error_number, text);
}

}  // namespace

absl::StatusOr<Userfaultfd> Userfaultfd::CreateForSelf() {
  constexpr int kFlags = O_CLOEXEC | O_NONBLOCK;
  base::UniqueFd fd(static_cast<int>(::syscall(SYS_userfaultfd, kFlags)));
  if (!fd.valid() && errno == EPERM) {
    fd = base::UniqueFd(static_cast<int>(::syscall(SYS_userfaultfd, kFlags | UFFD_USER_MODE_ONLY)));
  }
  if (!fd.valid()) return base::ErrnoError(errno, "userfaultfd");
  return Userfaultfd(std::move(fd));
}

absl::Status Userfaultfd::EnableWriteProtectAsync() const {
  struct uffdio_api api = {};
  api.api = UFFD_API;
  api.features = kFeatureWpUnpopulated | kFeatureWpAsync;
  if (::ioctl(fd_.get(), UFFDIO_API, &api) == 0) return absl::OkStatus();
  // EINVAL is the answer to a feature the kernel does not know.
  if (errno == EINVAL) {
    return absl::UnimplementedError(
        "this kernel's userfaultfd has no asynchronous write protection (Linux 6.7)");
  }
  return base::ErrnoError(errno, "UFFDIO_API");
}

absl::Status Userfaultfd::Register(base::AddressRange range) const {
  struct uffdio_register request = {};
  request.range = ToUapi(range);
  request.mode = UFFDIO_REGISTER_MODE_WP;
  if (::ioctl(fd_.get(), UFFDIO_REGISTER, &request) == 0) return absl::OkStatus();
  return UffdError(errno, "UFFDIO_REGISTER", range);
}

absl::Status Userfaultfd::Unregister(base::AddressRange range) const {
  struct uffdio_range request = ToUapi(range);
  if (::ioctl(fd_.get(), UFFDIO_UNREGISTER, &request) == 0) return absl::OkStatus();
  return UffdError(errno, "UFFDIO_UNREGISTER", range);
}

}  // namespace predump::kernel
