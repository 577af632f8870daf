#include "src/pagemap/copied_pages.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/kernel/procfs.h"

namespace predump::pagemap {
namespace {

using base::AddressRange;
using base::ByteCount;

absl::Status WaitUntilWritable(int fd) {
  struct pollfd poll_fd = {fd, POLLOUT, 0};
  while (::poll(&poll_fd, 1, -1) < 0) {
    if (errno != EINTR) return base::ErrnoError(errno, "poll of descriptor ", fd);
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<Extent> FirstBytes(std::span<const Extent> wanted, ByteCount limit) {
  std::vector<Extent> first;
  for (const Extent& extent : wanted) {
    const ByteCount bytes = std::min(extent.size(), limit);
    if (bytes == ByteCount(0)) break;
    first.push_back(
        AddressRange::FromOrdered(extent.start().value(), (extent.start() + bytes).value()));
    limit -= bytes;
  }
  return first;
}

void AppendExtent(std::vector<Extent>& extents, Extent extent) {
  if (extent.empty()) return;
  if (!extents.empty() && extents.back().end() == extent.start()) {
    extents.back() =
        AddressRange::FromOrdered(extents.back().start().value(), extent.end().value());
  } else {
    extents.push_back(extent);
  }
}

absl::StatusOr<UnreadablePages> UnreadablePages::Open(const kernel::ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(kernel::ProcessMemory memory,
                           kernel::ProcessMemory::Open(process, O_RDONLY));
  return UnreadablePages(process, std::move(memory));
}

absl::StatusOr<UnreadablePages::Result> UnreadablePages::Read(Extent extent,
                                                              std::span<std::byte> out) const {
  const uint64_t page = base::PageSize();
  const uint64_t bytes = std::min<uint64_t>(extent.size().value(), out.size() / page * page);
  PREDUMP_ASSIGN_OR_RETURN(ByteCount got, memory_.Read(extent.start(), out.first(bytes)));
  got = base::ToBytes(base::ToPages(got));
  if (got > ByteCount(0)) {
    return Result{
        .read = AddressRange::FromOrdered(extent.start().value(), (extent.start() + got).value()),
        .vanished = {}};
  }
  PREDUMP_ASSIGN_OR_RETURN(const bool exited, process_->HasExited());
  if (exited) return base::TargetExited(absl::StrCat("process ", process_->pid(), " has exited"));
  PREDUMP_ASSIGN_OR_RETURN(const Extent vanished, VanishedRun(extent));
  return Result{.read = {}, .vanished = vanished};
}

absl::StatusOr<Extent> UnreadablePages::VanishedRun(Extent extent) const {
  // Gigabytes may have been unmapped since the scan: skip them in one go, not page by page.
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<kernel::MapsEntry> maps, kernel::ReadMaps(*process_));
  const auto next = std::find_if(maps.begin(), maps.end(), [&](const kernel::MapsEntry& entry) {
    return entry.range.end() > extent.start();
  });
  uint64_t end = extent.end().value();
  if (next != maps.end()) {
    end = std::min(end, next->range.Contains(extent.start())
                            ? extent.start().value() + base::PageSize()
                            : next->range.start().value());
  }
  return AddressRange::FromOrdered(extent.start().value(), end);
}

absl::Status WriteCopying(int fd, std::span<const std::byte> bytes) {
  bool is_socket = true;
  while (!bytes.empty()) {
    // MSG_NOSIGNAL: a closed peer is an error to report, not a SIGPIPE.
    const ssize_t written = is_socket ? ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL)
                                      : ::write(fd, bytes.data(), bytes.size());
    if (written > 0) {
      bytes = bytes.subspan(static_cast<size_t>(written));
    } else if (written == 0) {
      return absl::DataLossError(absl::StrCat("descriptor ", fd, " took no bytes"));
    } else if (is_socket && errno == ENOTSOCK) {
      is_socket = false;
    } else if (errno == EAGAIN) {
      PREDUMP_RETURN_IF_ERROR(WaitUntilWritable(fd));
    } else if (errno != EINTR) {
      return base::ErrnoError(errno, "write of pages to descriptor ", fd);
    }
  }
  return absl::OkStatus();
}

}  // namespace predump::pagemap
