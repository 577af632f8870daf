#include "src/checkpoint/descriptor.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <map>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/base/clock.h"
#include "src/base/errors.h"

namespace predump::checkpoint {
namespace {

// kcmp(2): 0 equal, 1 less, 2 greater.
absl::StatusOr<int> CompareFiles(const kernel::ProcessHandle& process, int a, int b) {
  const long order = ::syscall(SYS_kcmp, process.pid(), process.pid(), KCMP_FILE, a, b);
  if (order < 0) return process.ErrorFor(errno, "kcmp");
  return static_cast<int>(order);
}

absl::StatusOr<Descriptor> ReadOne(const kernel::ProcessHandle& process, int fd) {
  Descriptor descriptor;
  descriptor.fd = fd;
  PREDUMP_ASSIGN_OR_RETURN(descriptor.link, kernel::ReadProcLink(process, absl::StrCat("fd/", fd)));
  PREDUMP_ASSIGN_OR_RETURN(descriptor.info, kernel::ReadFdInfo(process, fd));
  descriptor.info_read_ns = base::MonotonicNanoseconds();
  PREDUMP_ASSIGN_OR_RETURN(descriptor.duplicate, process.GetDescriptor(fd));
  if (::fstat(descriptor.duplicate.get(), &descriptor.stat) != 0) {
    return base::ErrnoError(errno, "fstat of ", descriptor.name());
  }
  return descriptor;
}

// Joins the members of one group of candidates that are the same description.
absl::Status JoinShared(const kernel::ProcessHandle& process, std::vector<Descriptor>& all,
                        std::vector<size_t>& group) {
  absl::Status failure;
  // One that a running process has closed meanwhile (EBADF) is equal to none.
  const auto compare = [&](size_t a, size_t b) {
    const auto result = CompareFiles(process, all[a].fd, all[b].fd);
    if (result.ok()) return *result;
    if (base::ErrnoOf(result.status()) != EBADF) failure.Update(result.status());
    return all[a].fd < all[b].fd ? 1 : 2;
  };
  const auto order = [&](size_t a, size_t b) {
    const int result = compare(a, b);
    return result == 1 || (result == 0 && a < b);
  };
  // Stable: which also bears an order that changes as descriptors are closed.
  std::stable_sort(group.begin(), group.end(), order);
  for (size_t i = 1; i < group.size(); ++i) {
    if (compare(group[i - 1], group[i]) == 0) {
      all[group[i]].shares_with = all[group[i - 1]].shares_with;
    }
  }
  PREDUMP_RETURN_IF_ERROR(failure);
  return absl::OkStatus();
}

}  // namespace

std::string Descriptor::name() const { return absl::StrCat("fd ", fd); }
uint32_t Descriptor::flags() const { return info.flags & ~uint32_t{O_CLOEXEC}; }
bool Descriptor::close_on_exec() const { return (info.flags & O_CLOEXEC) != 0; }

absl::StatusOr<std::vector<Descriptor>> ReadDescriptors(const kernel::ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<int> numbers, kernel::ListDescriptors(process));
  std::vector<Descriptor> all;
  all.reserve(numbers.size());
  using Identity = std::tuple<dev_t, ino_t, std::string, std::string>;
  std::map<Identity, std::vector<size_t>> groups;
  for (const int fd : numbers) {
    auto descriptor = ReadOne(process, fd);
    if (!descriptor.ok()) {
      const auto error = base::ErrnoOf(descriptor.status());
      if (error == ENOENT || error == EBADF) continue;  // closed since it was listed
      return descriptor.status();
    }
    descriptor->shares_with = all.size();
    // All anonymous files share one inode; eventfds can be told apart without asking kcmp.
    const std::string id(descriptor->info.Find("eventfd-id").value_or(""));
    groups[{descriptor->stat.st_dev, descriptor->stat.st_ino, descriptor->link, id}].push_back(
        all.size());
    all.push_back(*std::move(descriptor));
  }
  for (auto& [identity, group] : groups) {
    if (group.size() > 1) PREDUMP_RETURN_IF_ERROR(JoinShared(process, all, group));
  }
  return all;
}

}  // namespace predump::checkpoint
