#include "src/checkpoint/anonymous_file.h"

#include <linux/kcmp.h>
#include <poll.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/images/image_constants.h"
#include "src/kernel/procfs.h"

namespace predump::checkpoint {
namespace {

constexpr uint64_t kNanosecondsPerSecond = 1'000'000'000;

absl::Status Unreadable(const Descriptor& descriptor, absl::string_view what) {
  return absl::DataLossError(
      absl::StrCat(descriptor.name(), " (", descriptor.link, "): fdinfo without ", what));
}

absl::StatusOr<uint64_t> Number(const Descriptor& descriptor, absl::string_view key, int base) {
  const auto text = descriptor.info.Find(key);
  uint64_t value = 0;
  if (!text.has_value() ||
      std::sscanf(std::string(*text).c_str(), base == 16 ? "%" SCNx64 : "%" SCNu64, &value) != 1) {
    return Unreadable(descriptor, key);
  }
  return value;
}

// "(seconds, nanoseconds)"
absl::Status TimePair(const Descriptor& descriptor, absl::string_view key, uint64_t* seconds,
                      uint64_t* nanoseconds) {
  const auto text = descriptor.info.Find(key);
  if (!text.has_value() || std::sscanf(std::string(*text).c_str(), "(%" SCNu64 ", %" SCNu64 ")",
                                       seconds, nanoseconds) != 2) {
    return Unreadable(descriptor, key);
  }
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> AddEventFd(FileContext& context, const Descriptor& descriptor) {
  criu::file_entry entry;
  auto& body = StartEntry(entry, criu::EVENTFD, entry.mutable_efd(), descriptor);
  PREDUMP_ASSIGN_OR_RETURN(const uint64_t count, Number(descriptor, "eventfd-count", 16));
  body.set_counter(count);
  const uint32_t id = context.files.builder().AddFile(std::move(entry));
  // Told since Linux 6.5; before, a semaphore cannot be told from a counter.
  const auto semaphore = descriptor.info.Find("eventfd-semaphore");
  if (!semaphore.has_value()) {
    context.blockers.Add(descriptor.name(),
                         "this kernel does not tell whether an eventfd is a semaphore",
                         "use Linux 6.5 or newer");
  } else if (*semaphore != "0") {
    context.files.builder().Extra(id).set_eventfd_semaphore(true);
  }
  return id;
}

absl::StatusOr<uint32_t> AddSignalFd(FileContext& context, const Descriptor& descriptor) {
  criu::file_entry entry;
  auto& body = StartEntry(entry, criu::SIGNALFD, entry.mutable_sgfd(), descriptor);
  PREDUMP_ASSIGN_OR_RETURN(const uint64_t mask, Number(descriptor, "sigmask", 16));
  body.set_signal_mask(mask);
  return context.files.builder().AddFile(std::move(entry));
}

absl::Status FillTimer(const Descriptor& descriptor, criu::timerfd_entry& body) {
  PREDUMP_ASSIGN_OR_RETURN(const uint64_t clock, Number(descriptor, "clockid", 10));
  PREDUMP_ASSIGN_OR_RETURN(const uint64_t ticks, Number(descriptor, "ticks", 10));
  // "settime flags: 01": FdInfo takes the first word for the key.
  const auto settime = descriptor.info.Find("settime");
  uint32_t flags = 0;
  if (!settime.has_value() ||
      std::sscanf(std::string(*settime).c_str(), "flags: %" SCNo32, &flags) != 1) {
    return Unreadable(descriptor, "settime flags");
  }
  uint64_t seconds = 0;
  uint64_t nanoseconds = 0;
  PREDUMP_RETURN_IF_ERROR(TimePair(descriptor, "it_value", &seconds, &nanoseconds));
  body.set_clockid(static_cast<uint32_t>(clock));
  body.set_ticks(ticks);
  body.set_settime_flags(flags);
  body.set_vsec(seconds);
  body.set_vnsec(nanoseconds);
  PREDUMP_RETURN_IF_ERROR(TimePair(descriptor, "it_interval", &seconds, &nanoseconds));
  body.set_isec(seconds);
  body.set_insec(nanoseconds);
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> AddTimerFd(FileContext& context, const Descriptor& descriptor) {
  criu::file_entry entry;
  auto& body = StartEntry(entry, criu::TIMERFD, entry.mutable_tfd(), descriptor);
  PREDUMP_RETURN_IF_ERROR(FillTimer(descriptor, body));
  int64_t read_ns = descriptor.info_read_ns;
  if (context.frozen && body.vsec() == 0 && body.vnsec() == 0) {
    // A periodic timer that has expired is armed again, with its phase and the ticks missed, only
    // when somebody reads it or asks for its time; fdinfo does not count as asking. And an expiry
    // that falls due while fdinfo is being read is a tick a moment later.
    struct itimerspec unused;
    if (::timerfd_gettime(descriptor.duplicate.get(), &unused) != 0) {
      return base::ErrnoError(errno, "timerfd_gettime of ", descriptor.name());
    }
    Descriptor again;
    again.fd = descriptor.fd;
    PREDUMP_ASSIGN_OR_RETURN(again.info, kernel::ReadFdInfo(context.process, descriptor.fd));
    read_ns = base::MonotonicNanoseconds();
    PREDUMP_RETURN_IF_ERROR(FillTimer(again, body));
  }
  std::optional<int64_t> date_base;
  if (context.frozen && (body.vsec() != 0 || body.vnsec() != 0)) {
    const uint64_t left =
        body.vnsec() + static_cast<uint64_t>(context.instant.NanosecondsUntil(read_ns));
    body.set_vsec(body.vsec() + left / kNanosecondsPerSecond);
    body.set_vnsec(left % kNanosecondsPerSecond);
    if ((body.settime_flags() & TFD_TIMER_ABSTIME) != 0) {
      date_base = context.instant.ProcessClock(static_cast<clockid_t>(body.clockid()));
    }
  }
  const uint32_t id = context.files.builder().AddFile(std::move(entry));
  if (date_base.has_value()) context.files.builder().Extra(id).set_timerfd_clock_ns(*date_base);
  return id;
}

absl::StatusOr<uint32_t> AddEpoll(FileContext& context, const Descriptor& descriptor) {
  criu::file_entry entry;
  auto& body = StartEntry(entry, criu::EVENTPOLL, entry.mutable_epfd(), descriptor);
  for (const auto& [key, value] : descriptor.info.lines) {
    if (key != "tfd") continue;
    PREDUMP_ASSIGN_OR_RETURN(const EpollEntry from, ParseEpollEntry(value));
    criu::eventpoll_tfd_entry* to = body.add_tfd();
    to->set_id(0);
    to->set_tfd(from.target_fd);
    to->set_events(from.events);
    to->set_data(from.data);
    to->set_dev(static_cast<uint32_t>(from.device));
    to->set_inode(from.inode);
    to->set_pos(from.position);
  }
  return context.files.builder().AddFile(std::move(entry));
}

// kcmp(2), KCMP_EPOLL_TFD: is descriptor `target_fd` the file that epoll entry watches?
// `occurrence` counts entries with the same number.
absl::StatusOr<bool> EpollWatches(const FileContext& context, int epoll_fd, uint32_t target_fd,
                                  uint32_t occurrence) {
  struct kcmp_epoll_slot slot = {
      .efd = static_cast<uint32_t>(epoll_fd), .tfd = target_fd, .toff = occurrence};
  const pid_t pid = context.process.pid();
  const long order = ::syscall(SYS_kcmp, pid, pid, KCMP_EPOLL_TFD, target_fd, &slot);
  if (order < 0 && errno != EBADF && errno != ENOENT) {
    return context.process.ErrorFor(errno, "kcmp KCMP_EPOLL_TFD");
  }
  return order == 0;
}

// Whether poll(2) has anything to tell about a descriptor, to whoever asks.
bool HasNews(const FileContext& context, uint32_t fd) {
  for (const Descriptor& descriptor : context.descriptors) {
    if (static_cast<uint32_t>(descriptor.fd) != fd) continue;
    if (descriptor.link == "anon_inode:[signalfd]") return false;  // tells each its own signals
    struct pollfd look = {.fd = descriptor.duplicate.get(), .events = ~0, .revents = 0};
    return ::poll(&look, 1, 0) == 1;
  }
  return false;
}

struct RefusedKind {
  absl::string_view prefix;
  const char* reason;
};
constexpr RefusedKind kRefusedKinds[] = {
    {"inotify", "watches files (inotify)"},
    {"[fanotify]", "watches files (fanotify)"},
    {"[io_uring]", "asynchronous I/O (io_uring)"},
    {"[userfaultfd]", "handles page faults (userfaultfd)"},
    {"[perf_event]", "a performance counter"},
    {"bpf-", "a BPF object"},
    {"bpf_", "a BPF object"},
    {"[pidfd]", "refers to a process (pidfd)"},
    {"[aio]", "asynchronous I/O"},
    {"seccomp notify", "receives seccomp notifications"},
    {"kvm-", "a virtual machine"},
    {"[landlock-ruleset]", "a Landlock ruleset"},
};

}  // namespace

absl::StatusOr<EpollEntry> ParseEpollEntry(absl::string_view value) {
  EpollEntry entry;
  const std::string text(value);
  if (std::sscanf(text.c_str(),
                  "%" SCNu32 " events: %" SCNx32 " data: %" SCNx64 " pos:%" SCNu64 " ino:%" SCNx64
                  " sdev:%" SCNx64,
                  &entry.target_fd, &entry.events, &entry.data, &entry.position, &entry.inode,
                  &entry.device) != 6) {
    return absl::DataLossError(absl::StrCat("fdinfo of an epoll: tfd:", value));
  }
  return entry;
}

absl::StatusOr<uint32_t> AddAnonymousFile(FileContext& context, const Descriptor& descriptor) {
  absl::string_view kind = descriptor.link;
  absl::ConsumePrefix(&kind, "anon_inode:");
  if (kind == "[eventfd]") return AddEventFd(context, descriptor);
  if (kind == "[signalfd]") return AddSignalFd(context, descriptor);
  if (kind == "[timerfd]") return AddTimerFd(context, descriptor);
  if (kind == "[eventpoll]") return AddEpoll(context, descriptor);
  for (const RefusedKind& refused : kRefusedKinds) {
    if (absl::StartsWith(kind, refused.prefix)) {
      context.blockers.Add(descriptor.name(), refused.reason);
      return 0;
    }
  }
  context.blockers.Add(descriptor.name(), absl::StrCat("a kind of file not known (", kind, ")"));
  return 0;
}

absl::Status RefuseEpollEntries(FileContext& context) {
  for (size_t i = 0; i < context.descriptors.size(); ++i) {
    const Descriptor& descriptor = context.descriptors[i];
    if (descriptor.shares_with != i || descriptor.link != "anon_inode:[eventpoll]" ||
        context.file_ids[i] == 0) {
      continue;
    }
    const auto& body = context.state.files(static_cast<int>(context.file_ids[i]) - 1).epfd();
    absl::flat_hash_map<uint32_t, uint32_t> seen;
    for (const auto& entry : body.tfd()) {
      const uint32_t occurrence = seen[entry.tfd()]++;
      PREDUMP_ASSIGN_OR_RETURN(const bool watches,
                               EpollWatches(context, descriptor.fd, entry.tfd(), occurrence));
      // While the process runs the entry may have come or gone since fdinfo was read.
      if (!watches) {
        context.blockers.Add(
            descriptor.name(),
            absl::StrCat("epoll watches a file that fd ", entry.tfd(), " no longer is"),
            "the program closed a descriptor of which it keeps a duplicate");
      } else if (images::HasFired(entry.events()) && !HasNews(context, entry.tfd())) {
        context.blockers.Add(
            descriptor.name(),
            absl::StrCat(
                "an epoll entry has fired (EPOLLONESHOT), and nothing is to be had from fd ",
                entry.tfd(), " now"),
            "try again: the program is at work on it");
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace predump::checkpoint
