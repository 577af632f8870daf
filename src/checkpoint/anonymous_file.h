// eventfd, timerfd, signalfd and epoll: files without a path, told by /proc/PID/fdinfo.
#ifndef PREDUMP_CHECKPOINT_ANONYMOUS_FILE_H_
#define PREDUMP_CHECKPOINT_ANONYMOUS_FILE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "src/checkpoint/file_context.h"

namespace predump::checkpoint {

// One "tfd:" line of fdinfo of an epoll descriptor (fs/eventpoll.c, Linux 4.13).
struct EpollEntry {
  uint32_t target_fd = 0;  // the number under which it was added
  uint32_t events = 0;
  uint64_t data = 0;
  uint64_t position = 0;
  uint64_t inode = 0;
  uint64_t device = 0;
};
// `value`: the line behind "tfd:". DataLoss for anything else.
absl::StatusOr<EpollEntry> ParseEpollEntry(absl::string_view value);

// Adds the file behind `descriptor`, whose link is "anon_inode:...". Returns its id, or 0 with a
// blocker where that kind does not move.
absl::StatusOr<uint32_t> AddAnonymousFile(FileContext& context, const Descriptor& descriptor);

// Refuses epoll entries that epoll_ctl(2) could not make anew: those that watch a file the
// descriptor of that number no longer is (closed while a duplicate lives on, or replaced), and
// one-shot entries that have fired for a file with nothing to tell now, which would have to fire
// again.
absl::Status RefuseEpollEntries(FileContext& context);

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_ANONYMOUS_FILE_H_
