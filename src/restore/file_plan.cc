#include "src/restore/file_plan.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <cstddef>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/images/image_constants.h"
#include "src/restore/socket_plan.h"
#include "src/restore/timer_value.h"

namespace predump::restore::internal {
namespace {

constexpr uint32_t kCreationFlags = O_CREAT | O_EXCL | O_TRUNC | O_CLOEXEC | O_NOCTTY;
// What fcntl(F_SETFL) changes, see SETFL_MASK in fs/fcntl.c.
constexpr uint32_t kSettableFlags = O_APPEND | O_NONBLOCK | O_ASYNC | O_DIRECT | O_NOATIME;
constexpr uint32_t kDefaultPipeBytes = 65536;

}  // namespace

FilePlan::FilePlan(LandingProcess& process, const proto::ProcessState& state,
                   const images::FileIndex& files, int64_t elapsed_ns, CallPlan& plan)
    : process_(process), state_(state), files_(files), elapsed_ns_(elapsed_ns), plan_(plan) {
  for (const auto& entry : state.descriptors()) {
    descriptors_[entry.id()].push_back(&entry);
    highest_ = std::max(highest_, static_cast<int>(entry.fd()));
  }
  used_.resize(static_cast<size_t>(highest_) + 4);
}

absl::Status FilePlan::Add() {
  for (const auto& file : state_.files()) {
    // Mapped files, the executable, the working directory: in the list, but not open.
    if (done_.contains(file.id())) continue;
    if (Descriptors(file.id()).empty()) continue;
    PREDUMP_RETURN_IF_ERROR(AddFile(file));
  }
  SocketPlan(*this).AddQueuesAndShutdowns();
  for (const auto& file : state_.files()) {
    if (file.type() == criu::EVENTPOLL && !Descriptors(file.id()).empty()) AddEpollMembers(file);
  }
  return absl::OkStatus();
}

absl::Status FilePlan::AddFile(const criu::file_entry& file) {
  const std::string name = Name(file);
  switch (file.type()) {
    case criu::REG:
      return AddRegular(file);
    case criu::TTY:
      return AddTerminal(file);
    case criu::PIPE:
      AddPipe(file.pipe().pipe_id());
      return absl::OkStatus();
    case criu::EVENTFD:
      AddEventfd(file);
      return absl::OkStatus();
    case criu::EVENTPOLL:
      Place(plan_.Call(SYS_epoll_create1, {0}, absl::StrCat("epoll of ", name)), file);
      return absl::OkStatus();
    case criu::TIMERFD:
      AddTimerfd(file);
      return absl::OkStatus();
    case criu::SIGNALFD: {
      const uint64_t mask = file.sgfd().signal_mask();
      Place(plan_.Call(SYS_signalfd4,
                       {-1, plan_.Struct(mask), 8, uint64_t{file.sgfd().flags() & O_NONBLOCK}},
                       absl::StrCat("signalfd of ", name)),
            file);
      return absl::OkStatus();
    }
    case criu::INETSK:
    case criu::UNIXSK:
      return SocketPlan(*this).AddSocket(file);
    default:
      return absl::UnimplementedError(absl::StrCat(
          name, ": files of type ", criu::fd_types_Name(file.type()), " cannot be restored"));
  }
}

absl::Status FilePlan::AddRegular(const criu::file_entry& file) {
  const criu::reg_file_entry& reg = file.reg();
  const uint64_t flags = (reg.flags() & ~kCreationFlags) | O_NOCTTY;
  const int fd = Place(plan_.Call(SYS_open, {plan_.String(reg.name()), flags},
                                  absl::StrCat("open ", reg.name(), " (", Name(file), ")")),
                       file);
  if (reg.pos() != 0 && reg.pos() != UINT64_MAX && !S_ISCHR(reg.mode())) {
    if (S_ISDIR(reg.mode())) {
      // ext4 takes a position of 0 for the one it was at last when nothing has been listed before:
      // read at its end first, a directory would seem empty once it is rewound.
      constexpr size_t kLongestEntry = 512;
      plan_.Call(SYS_getdents64, {fd, plan_.Room(kLongestEntry), kLongestEntry},
                 absl::StrCat("list ", reg.name()));
    }
    plan_.Call(SYS_lseek, {fd, reg.pos(), SEEK_SET},
               absl::StrCat("seek in ", reg.name(), " to ", reg.pos()));
  }
  SetStatusFlags(fd, reg.flags() & O_ASYNC, file);
  return absl::OkStatus();
}

absl::Status FilePlan::AddTerminal(const criu::file_entry& file) {
  if (process_.baseline.terminal.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat(Name(file), " is a terminal; that takes --shell-job at both ends"));
  }
  const uint64_t flags = (file.tty().flags() & ~kCreationFlags) | O_NOCTTY;
  Place(plan_.Call(SYS_open, {plan_.String(process_.baseline.terminal), flags},
                   absl::StrCat("open the terminal ", process_.baseline.terminal)),
        file);
  return absl::OkStatus();
}

void FilePlan::AddPipe(uint32_t pipe_id) {
  const criu::file_entry* ends[2] = {nullptr, nullptr};
  std::vector<const criu::file_entry*> more;  // opened again through /proc/self/fd
  for (const auto& file : state_.files()) {
    if (file.type() != criu::PIPE || file.pipe().pipe_id() != pipe_id ||
        Descriptors(file.id()).empty()) {
      continue;
    }
    done_.insert(file.id());
    const uint32_t access = file.pipe().flags() & O_ACCMODE;
    const criu::file_entry** end = access == O_RDONLY ? &ends[0] : &ends[1];
    if (access == O_RDWR || *end != nullptr) {
      more.push_back(&file);
    } else {
      *end = &file;
    }
  }
  const auto pipe = std::find_if(state_.pipes().begin(), state_.pipes().end(),
                                 [&](const auto& p) { return p.entry().pipe_id() == pipe_id; });
  const std::string name = absl::StrCat("pipe of ", Name(ends[0] != nullptr   ? *ends[0]
                                                         : ends[1] != nullptr ? *ends[1]
                                                                              : *more.front()));
  plan_.Call(SYS_pipe2, {plan_.Room(8), 0}, name);
  const auto [reader, writer] = PlacePair(ends[0], ends[1]);
  if (pipe != state_.pipes().end()) {
    if (pipe->entry().has_size() && pipe->entry().size() != kDefaultPipeBytes) {
      plan_.Expect(plan_.Call(SYS_fcntl, {reader, F_SETPIPE_SZ, uint64_t{pipe->entry().size()}},
                              absl::StrCat("capacity of the ", name)),
                   pipe->entry().size());
    }
    // In packet mode every write is a packet of its own, and stays one.
    const bool packets = pipe->packet_bytes_size() != 0;
    if (packets) plan_.Call(SYS_fcntl, {writer, F_SETFL, O_DIRECT | O_NONBLOCK}, name);
    size_t offset = 0;
    const auto fill = [&](size_t bytes) {
      const uint64_t data = plan_.Bytes(absl::string_view(pipe->data()).substr(offset, bytes));
      plan_.Expect(plan_.Call(SYS_write, {writer, data, uint64_t{bytes}},
                              absl::StrCat("contents of the ", name)),
                   static_cast<int64_t>(bytes));
      offset += bytes;
    };
    if (packets) {
      for (const uint32_t bytes : pipe->packet_bytes()) fill(bytes);
      plan_.Call(SYS_fcntl, {writer, F_SETFL, 0}, name);
    } else if (!pipe->data().empty()) {
      fill(pipe->data().size());
    }
  }
  for (const criu::file_entry* file : more) {
    const std::string path = absl::StrCat("/proc/self/fd/", reader);
    Place(
        plan_.Call(SYS_open, {plan_.String(path), uint64_t{file->pipe().flags() & ~kCreationFlags}},
                   absl::StrCat("open the ", name, " again")),
        *file);
  }
  for (const criu::file_entry* end : ends) {
    if (end != nullptr) {
      const int fd = static_cast<int>(Descriptors(end->id()).front()->fd());
      SetStatusFlags(fd, end->pipe().flags(), *end);
    }
  }
  if (ends[0] == nullptr) CloseSpare(reader);
  if (ends[1] == nullptr) CloseSpare(writer);
}

void FilePlan::AddEventfd(const criu::file_entry& file) {
  const criu::eventfd_file_entry& event = file.efd();
  const proto::FileExtra* extra = files_.FindExtra(file.id());
  int flags = static_cast<int>(event.flags() & O_NONBLOCK);
  if (extra != nullptr && extra->eventfd_semaphore()) flags |= EFD_SEMAPHORE;
  const bool fits = event.counter() <= UINT32_MAX;  // eventfd2(2) takes 32 bits
  const int fd = Place(plan_.Call(SYS_eventfd2, {fits ? event.counter() : 0, flags},
                                  absl::StrCat("eventfd of ", Name(file))),
                       file);
  if (!fits) {
    plan_.Expect(plan_.Call(SYS_write, {fd, plan_.Struct(event.counter()), 8},
                            absl::StrCat("counter of the eventfd ", Name(file))),
                 8);
  }
}

void FilePlan::AddTimerfd(const criu::file_entry& file) {
  const criu::timerfd_entry& timer = file.tfd();
  const std::string name = absl::StrCat("timerfd of ", Name(file));
  const int fd =
      Place(plan_.Call(SYS_timerfd_create,
                       {uint64_t{timer.clockid()}, uint64_t{timer.flags() & O_NONBLOCK}}, name),
            file);
  itimerspec value = {};
  value.it_interval = {static_cast<time_t>(timer.isec()), static_cast<long>(timer.insec())};
  const proto::FileExtra* extra = files_.FindExtra(file.id());
  const int64_t interval = ToNanoseconds(timer.isec(), timer.insec());
  int64_t remaining = ToNanoseconds(timer.vsec(), timer.vnsec());
  uint64_t ticks = timer.ticks();
  // Of a periodic one that has expired and was not read, /proc and so CRIU tell no time left.
  if (remaining == 0 && ticks != 0) remaining = interval;
  if (remaining != 0) {
    const bool absolute = (timer.settime_flags() & TFD_TIMER_ABSTIME) != 0 && extra != nullptr &&
                          extra->has_timerfd_clock_ns();
    // An absolute timer keeps its date on its clock; a relative one its distance.
    if (absolute) {
      // What a peer says: a date beyond all clocks is one that never comes.
      if (__builtin_add_overflow(remaining, extra->timerfd_clock_ns(), &remaining)) {
        remaining = INT64_MAX;
      }
    } else if (interval != 0) {
      const auto after = PeriodicRemainingAfter(remaining, interval, elapsed_ns_);
      remaining = after.remaining_ns;
      ticks += after.expirations;
    } else {
      remaining = RemainingAfter(remaining, elapsed_ns_);
    }
    value.it_value = ToTimespec(remaining);
    int flags = static_cast<int>(timer.settime_flags());
    if (!absolute) flags &= ~TFD_TIMER_ABSTIME;
    plan_.Call(SYS_timerfd_settime, {fd, flags, plan_.Struct(value), 0},
               absl::StrCat("arm the ", name));
  }
  if (ticks != 0) {
    // linux/timerfd.h, with CONFIG_CHECKPOINT_RESTORE.
    constexpr uint64_t kSetTicks = _IOW('T', 0, uint64_t);
    plan_.Call(SYS_ioctl, {fd, kSetTicks, plan_.Struct(ticks)},
               absl::StrCat("expirations of the ", name));
  }
  SetStatusFlags(fd, timer.flags() & ~uint32_t{O_NONBLOCK}, file);
}

void FilePlan::AddEpollMembers(const criu::file_entry& file) {
  const int epoll = static_cast<int>(Descriptors(file.id()).front()->fd());
  // Those that have fired come first, while nothing else can be reported: each is made to fire.
  constexpr uint32_t kAnything = EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDNORM | EPOLLRDBAND |
                                 EPOLLWRNORM | EPOLLWRBAND | EPOLLMSG | EPOLLRDHUP;
  for (const auto& entry : file.epfd().tfd()) {
    if (!images::HasFired(entry.events())) continue;
    epoll_event event = {};
    event.events = entry.events() | EPOLLONESHOT | kAnything;
    event.data.u64 = entry.data();
    const std::string what = absl::StrCat("watch fd ", entry.tfd(), " by the epoll of fd ", epoll);
    plan_.Call(SYS_epoll_ctl, {epoll, EPOLL_CTL_ADD, uint64_t{entry.tfd()}, plan_.Struct(event)},
               what);
    plan_.Expect(plan_.Call(SYS_epoll_wait, {epoll, plan_.Room(sizeof(epoll_event)), 1, 0}, what),
                 1);
  }
  for (const auto& entry : file.epfd().tfd()) {
    if (images::HasFired(entry.events())) continue;
    epoll_event event = {};
    event.events = entry.events();
    event.data.u64 = entry.data();
    plan_.Call(SYS_epoll_ctl, {epoll, EPOLL_CTL_ADD, uint64_t{entry.tfd()}, plan_.Struct(event)},
               absl::StrCat("watch fd ", entry.tfd(), " by the epoll of fd ", epoll));
  }
}

int FilePlan::Place(Id opened, const criu::file_entry& file) {
  const int got = LowestFree();
  plan_.Expect(opened, got);
  const auto& descriptors = Descriptors(file.id());
  bool in_place = false;
  for (const criu::fdinfo_entry* entry : descriptors) {
    const int want = static_cast<int>(entry->fd());
    const bool close_on_exec = (entry->flags() & FD_CLOEXEC) != 0;
    MarkUsed(want);
    if (want == got) {
      in_place = true;
      if (close_on_exec) {
        plan_.Call(SYS_fcntl, {want, F_SETFD, FD_CLOEXEC},
                   absl::StrCat("close-on-exec of fd ", want));
      }
    } else {
      plan_.Expect(plan_.Call(SYS_dup3, {got, want, close_on_exec ? O_CLOEXEC : 0},
                              absl::StrCat("put a file at fd ", want)),
                   want);
    }
  }
  if (!in_place) plan_.Call(SYS_close, {got}, "close a temporary descriptor");
  return static_cast<int>(descriptors.front()->fd());
}

std::pair<int, int> FilePlan::PlacePair(const criu::file_entry* a, const criu::file_entry* b) {
  const int first = LowestFree();
  int second = first + 1;
  while (used_[static_cast<size_t>(second)]) ++second;
  // Beyond all numbers of the state and these two, so that neither end is in the other's way.
  const int beyond = std::max(highest_, second) + 1;
  const int aside[2] = {beyond, beyond + 1};
  const int got[2] = {first, second};
  for (int i = 0; i < 2; ++i) {
    plan_.Expect(plan_.Call(SYS_dup3, {got[i], aside[i], 0}, "set one end of a pair aside"),
                 aside[i]);
    plan_.Call(SYS_close, {got[i]}, "close a temporary descriptor");
  }
  int result[2] = {aside[0], aside[1]};
  const criu::file_entry* files[2] = {a, b};
  for (int i = 0; i < 2; ++i) {
    if (files[i] == nullptr) continue;
    for (const criu::fdinfo_entry* entry : Descriptors(files[i]->id())) {
      const int want = static_cast<int>(entry->fd());
      const bool close_on_exec = (entry->flags() & FD_CLOEXEC) != 0;
      plan_.Expect(plan_.Call(SYS_dup3, {aside[i], want, close_on_exec ? O_CLOEXEC : 0},
                              absl::StrCat("put a file at fd ", want)),
                   want);
      MarkUsed(want);
    }
    plan_.Call(SYS_close, {aside[i]}, "close a temporary descriptor");
    result[i] = static_cast<int>(Descriptors(files[i]->id()).front()->fd());
  }
  return {result[0], result[1]};
}

void FilePlan::CloseSpare(int fd) { plan_.Call(SYS_close, {fd}, "close the end nobody has"); }

void FilePlan::SetStatusFlags(int fd, uint32_t flags, const criu::file_entry& file) {
  if ((flags & kSettableFlags) != 0) {
    plan_.Call(SYS_fcntl, {fd, F_SETFL, uint64_t{flags & kSettableFlags}},
               absl::StrCat("status flags of ", Name(file)));
  }
}

int FilePlan::LowestFree() {
  while (used_[static_cast<size_t>(lowest_)]) ++lowest_;
  return lowest_;
}

std::string FilePlan::Name(const criu::file_entry& file) const {
  const auto& descriptors = Descriptors(file.id());
  if (descriptors.empty()) return absl::StrCat("file ", file.id());
  return absl::StrCat("fd ", descriptors.front()->fd());
}

const std::vector<const criu::fdinfo_entry*>& FilePlan::Descriptors(uint32_t file_id) const {
  static const std::vector<const criu::fdinfo_entry*> kNone;
  const auto found = descriptors_.find(file_id);
  return found == descriptors_.end() ? kNone : found->second;
}

}  // namespace predump::restore::internal
