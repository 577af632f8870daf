#include "src/kernel/pagemap_scan.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

#include "src/base/errors.h"

namespace predump::kernel {

absl::StatusOr<PagemapFile> PagemapFile::Open(const ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(base::UniqueFd fd, process.OpenProc("pagemap", O_RDONLY));
  return PagemapFile(std::move(fd), process);
}

absl::StatusOr<ScanResult> PagemapFile::Scan(const ScanRequest& request,
                                             std::span<PageRegion> out) const {
  PagemapScanArguments arguments = {
      .size = sizeof(PagemapScanArguments),
      .flags = request.flags,
      .start = request.range.start().value(),
      .end = request.range.end().value(),
      .walk_end = request.range.start().value(),
      .vec = reinterpret_cast<uint64_t>(out.data()),
      .vec_len = out.size(),
      .max_pages = request.max_pages,
      .category_inverted = request.category_inverted,
      .category_mask = request.category_mask,
      .category_anyof_mask = request.category_anyof_mask,
      .return_mask = request.return_mask,
  };
  const int got = ::ioctl(fd_.get(), kPagemapScanIoctl, &arguments);
  if (got >= 0) {
    return ScanResult{static_cast<size_t>(got), base::RemoteAddress(arguments.walk_end), 0};
  }
  if (errno != EPERM) return process_->ErrorFor(errno, "PAGEMAP_SCAN");
  return ScanResult{0, request.range.start(), EPERM};
}

absl::StatusOr<size_t> PagemapFile::ReadEntries(base::AddressRange range,
                                                std::span<uint64_t> out) const {
  const size_t wanted = std::min<size_t>(out.size(), range.pages().value());
  const uint64_t first = range.start().value() / base::PageSize();
  size_t done = 0;
  while (done < wanted) {
    const ssize_t bytes = ::pread(fd_.get(), out.data() + done, (wanted - done) * sizeof(uint64_t),
                                  static_cast<off_t>((first + done) * sizeof(uint64_t)));
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes < 0) return process_->ErrorFor(errno, "read pagemap");
    // 0 at the end of the address space, and always once the memory is gone.
    if (bytes == 0) {
      PREDUMP_ASSIGN_OR_RETURN(const bool exited, process_->HasExited());
      if (exited) return process_->ErrorFor(ESRCH, "read pagemap");
      break;
    }
    done += static_cast<size_t>(bytes) / sizeof(uint64_t);
  }
  return done;
}

}  // namespace predump::kernel
