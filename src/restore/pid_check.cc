#include "src/restore/pid_check.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "src/base/atomic_file.h"
#include "src/kernel/procfs_task.h"

namespace predump::restore::internal {
namespace {

constexpr int kLookAgainMs = 5;

bool IsTaken(pid_t id) {
  return ::access(absl::StrCat("/proc/", id, "/stat").c_str(), F_OK) == 0 || ::getsid(id) >= 0 ||
         ::kill(-id, 0) == 0 || errno == EPERM;
}

std::optional<kernel::StatFields> StatOf(pid_t id) {
  const absl::StatusOr<std::string> text = base::ReadWholeFile(absl::StrCat("/proc/", id, "/stat"));
  if (!text.ok()) return std::nullopt;
  const absl::StatusOr<kernel::StatFields> stat = kernel::ParseStat(*text);
  if (!stat.ok()) return std::nullopt;
  return *stat;
}

// All processes here that have ended and are not reaped, where `id` is one of them or all it stands
// for; none where somebody who lives bears it.
std::vector<kernel::StatFields> DeadBearers(pid_t id) {
  std::vector<kernel::StatFields> dead;
  const auto add = [&](const std::optional<kernel::StatFields>& stat) {
    if (!stat.has_value()) return true;  // reaped meanwhile
    if (stat->pid != id && stat->process_group != id && stat->session != id) return true;
    const bool ended = (stat->state == 'Z' || stat->state == 'X') && stat->thread_count <= 1;
    if (ended) dead.push_back(*stat);
    return ended;
  };
  if (!add(StatOf(id))) return {};  // maybe a thread, which the list does not have
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir("/proc"), ::closedir);
  if (directory == nullptr) return {};
  while (const dirent* entry = ::readdir(directory.get())) {
    pid_t pid = 0;
    if (absl::SimpleAtoi(entry->d_name, &pid) && pid != id && !add(StatOf(pid))) return {};
  }
  return dead;
}

}  // namespace

void FindTakenPids(const proto::Begin& begin, absl::Duration patience, Blockers& blockers) {
  std::set<uint32_t> ids(begin.tids().begin(), begin.tids().end());
  ids.insert(begin.pid());
  const absl::Time deadline = absl::Now() + patience;
  for (const uint32_t number : ids) {
    const auto id = static_cast<pid_t>(number);
    std::vector<kernel::StatFields> dead;
    while (IsTaken(id)) {
      dead = DeadBearers(id);
      if (dead.empty() || absl::Now() >= deadline) break;
      // That a zombie is reaped is told to nobody.
      ::poll(nullptr, 0, kLookAgainMs);
    }
    if (!IsTaken(id)) continue;
    if (dead.empty()) {
      AddBlocker(blockers, absl::StrCat("pid ", id), "is taken on this host",
                 "give it a pid namespace of its own (--new-pidns)");
    } else {
      AddBlocker(blockers, absl::StrCat("pid ", id),
                 absl::StrCat(
                     "is taken on this host by process ", dead.front().pid, " (", dead.front().comm,
                     "), which has ended and is not reaped by its parent, ", dead.front().ppid),
                 "end that one, or give it a pid namespace of its own (--new-pidns)");
    }
  }
}

}  // namespace predump::restore::internal
