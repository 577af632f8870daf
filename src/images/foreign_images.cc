#include <errno.h>
#include <sys/stat.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "src/base/errors.h"
#include "src/images/foreign_parts.h"

namespace predump::images::internal {
namespace {

// Magic numbers and nothing behind them: the same as an image that is not there.
constexpr off_t kEmptyImageBytes = 8;

struct NameMeaning {
  absl::string_view name;  // without .img; with a number behind it where it ends in '-'
  const char* meaning;     // nullptr: read here, or of no consequence for one process
};

constexpr NameMeaning kMeanings[] = {
    {"inventory", nullptr},
    {"pstree", nullptr},
    {"core-", nullptr},
    {"ids-", nullptr},
    {"mm-", nullptr},
    {"fs-", nullptr},
    {"files", nullptr},
    {"fdinfo-", nullptr},
    {"pipes-data", nullptr},
    {"sk-queues", nullptr},
    {"seccomp", nullptr},
    {"timens-", nullptr},
    {"tty-info", nullptr},
    {"pagemap-", nullptr},
    {"pages-", nullptr},
    // The process gets the cgroups of whoever restores it, whatever it had.
    {"cgroup", nullptr},
    {"cpuinfo", nullptr},
    {"pagemap-shmem-", "shared memory"},
    {"tcp-stream-", "an established TCP connection"},
    {"ghost-file-", "a file that was deleted while open or mapped"},
    {"remap-fpath", "files that were deleted or replaced while open or mapped"},
    {"memfd", "memory files (memfd_create) or shared anonymous memory"},
    {"fifo-data", "data in a named pipe"},
    {"tty-data", "data waiting in a terminal"},
    {"filelocks", "file locks"},
    {"apparmor", "AppArmor profiles"},
    {"bpfmap-file", "BPF maps"},
    {"bpfmap-data", "BPF maps"},
    {"mountpoints-", "a mount namespace"},
    {"mnt-", "a mount namespace"},
    {"tmpfs-", "a mount namespace"},
    {"utsns-", "a UTS namespace"},
    {"userns-", "a user namespace"},
    {"pidns-", "a pid namespace"},
    {"ipcns-", "an IPC namespace"},
    {"netns-", "a network namespace"},
    {"netdev-", "a network namespace"},
    {"ifaddr-", "a network namespace"},
    {"route-", "a network namespace"},
    {"route6-", "a network namespace"},
    {"rule-", "a network namespace"},
    {"iptables-", "a network namespace"},
    {"ip6tables-", "a network namespace"},
    {"nftables-", "a network namespace"},
    {"netns-ct-", "a network namespace"},
    {"netns-exp-", "a network namespace"},
};

// The entry whose name fits best: pagemap-shmem- before pagemap-.
const NameMeaning* FindMeaning(absl::string_view name) {
  const NameMeaning* best = nullptr;
  for (const NameMeaning& known : kMeanings) {
    const bool fits =
        absl::EndsWith(known.name, "-") ? absl::StartsWith(name, known.name) : name == known.name;
    if (fits && (best == nullptr || known.name.size() > best->name.size())) best = &known;
  }
  return best;
}

}  // namespace

absl::Status AddForeignImages(int directory_fd, const std::vector<std::string>& names,
                              std::vector<proto::Blocker>& blockers) {
  for (const std::string& name : names) {
    absl::string_view stem = name;
    if (!absl::ConsumeSuffix(&stem, ".img")) continue;
    const NameMeaning* known = FindMeaning(stem);
    if (known != nullptr && known->meaning == nullptr) continue;
    struct stat stat;
    if (::fstatat(directory_fd, name.c_str(), &stat, 0) != 0) {
      return base::ErrnoError(errno, "stat ", name);
    }
    if (stat.st_size <= kEmptyImageBytes) continue;
    proto::Blocker& blocker = blockers.emplace_back();
    blocker.set_what(name);
    blocker.set_reason(known != nullptr ? known->meaning : "an image that predump does not know");
  }
  return absl::OkStatus();
}

}  // namespace predump::images::internal
