#include "tests/workloads/blocking_calls.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <atomic>
#include <memory>

#include "tests/workloads/workload.h"

namespace predump::workloads {
namespace {

using Returns = BlockingCall::Returns;

// A call that should have timed out: 0 if it returned `expected`, with `expected_errno` if that is
// -1.
int TimedOut(int64_t result, int64_t expected, int expected_errno = 0) {
  if (result == expected && (result != -1 || errno == expected_errno)) return 0;
  return result == -1 ? errno : EPROTO;
}

int ToMs(int64_t ns) { return static_cast<int>((ns + kNsPerMs - 1) / kNsPerMs); }

timeval ToTimeval(int64_t ns) { return {ns / kNsPerSecond, (ns % kNsPerSecond + 999) / 1000}; }

void SetReceiveTimeout(int fd, int64_t ns) {
  const timeval timeout = ToTimeval(ns);
  Must(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout), "SO_RCVTIMEO");
}

struct Pair {
  int reader;
  int writer;
};

Pair MakePipe() {
  int ends[2];
  Must(pipe2(ends, O_CLOEXEC), "pipe2");
  return {ends[0], ends[1]};
}

Pair MakeSocketPair() {
  int ends[2];
  Must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), "socketpair");
  return {ends[0], ends[1]};
}

int MakeInetSocket(int type) {
  const int fd = Must(socket(AF_INET, type | SOCK_CLOEXEC, 0), "socket");
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  Must(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), "bind");
  if (type == SOCK_STREAM) Must(listen(fd, 4), "listen");
  return fd;
}

int MakeEpoll(int member) {
  const int epoll = Must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
  epoll_event event = {};
  event.events = EPOLLIN;
  event.data.fd = member;
  Must(epoll_ctl(epoll, EPOLL_CTL_ADD, member, &event), "epoll_ctl");
  return epoll;
}

long Futex(std::atomic<uint32_t>* word, int operation, uint32_t value, const timespec* timeout) {
  return syscall(SYS_futex, word, operation, value, timeout, nullptr, FUTEX_BITSET_MATCH_ANY);
}

// Never written to: what waits on it waits out its time.
int QuietDescriptor() { return MakePipe().reader; }

void AddPollingCalls(std::vector<BlockingCall>& calls) {
  const int epoll = MakeEpoll(QuietDescriptor());
  calls.push_back({"epoll_wait",
                   Returns::kAtTimeout,
                   [epoll](int64_t ns) {
                     epoll_event event;
                     return TimedOut(epoll_wait(epoll, &event, 1, ToMs(ns)), 0);
                   },
                   {}});
  calls.push_back({"epoll_pwait2",
                   Returns::kAtTimeout,
                   [epoll](int64_t ns) {
                     epoll_event event;
                     const timespec timeout = ToTimespec(ns);
                     return TimedOut(
                         syscall(SYS_epoll_pwait2, epoll, &event, 1, &timeout, nullptr, 8), 0);
                   },
                   {}});
  const int quiet = QuietDescriptor();
  calls.push_back({"poll",
                   Returns::kAtTimeout,
                   [quiet](int64_t ns) {
                     pollfd entry = {quiet, POLLIN, 0};
                     return TimedOut(poll(&entry, 1, ToMs(ns)), 0);
                   },
                   {}});
  calls.push_back({"ppoll",
                   Returns::kAtTimeout,
                   [quiet](int64_t ns) {
                     pollfd entry = {quiet, POLLIN, 0};
                     const timespec timeout = ToTimespec(ns);
                     sigset_t mask;
                     pthread_sigmask(SIG_BLOCK, nullptr, &mask);
                     return TimedOut(ppoll(&entry, 1, &timeout, &mask), 0);
                   },
                   {}});
  calls.push_back({"select",
                   Returns::kAtTimeout,
                   [quiet](int64_t ns) {
                     fd_set set;
                     FD_ZERO(&set);
                     FD_SET(quiet, &set);
                     timeval timeout = ToTimeval(ns);
                     return TimedOut(select(quiet + 1, &set, nullptr, nullptr, &timeout), 0);
                   },
                   {}});
}

void AddSleepingCalls(std::vector<BlockingCall>& calls) {
  calls.push_back({"nanosleep",
                   Returns::kAtTimeout,
                   [](int64_t ns) {
                     const timespec duration = ToTimespec(ns);
                     // glibc's nanosleep is clock_nanosleep; this is the old call.
                     return TimedOut(syscall(SYS_nanosleep, &duration, nullptr), 0);
                   },
                   {}});
  calls.push_back({"clock_nanosleep_relative",
                   Returns::kAtTimeout,
                   [](int64_t ns) {
                     const timespec duration = ToTimespec(ns);
                     return clock_nanosleep(CLOCK_MONOTONIC, 0, &duration, nullptr);
                   },
                   {}});
  calls.push_back({"clock_nanosleep_absolute",
                   Returns::kAtTimeout,
                   [](int64_t ns) {
                     const timespec when = ToTimespec(NowNs() + ns);
                     return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, nullptr);
                   },
                   {}});
  calls.push_back({"clock_nanosleep_boottime",
                   Returns::kAtTimeout,
                   [](int64_t ns) {
                     const timespec duration = ToTimespec(ns);
                     return clock_nanosleep(CLOCK_BOOTTIME, 0, &duration, nullptr);
                   },
                   {}});
}

void AddSignalCalls(std::vector<BlockingCall>& calls) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR2);
  calls.push_back({"sigtimedwait",
                   Returns::kAtTimeout,
                   [set](int64_t ns) {
                     const timespec timeout = ToTimespec(ns);
                     return TimedOut(sigtimedwait(&set, nullptr, &timeout), -1, EAGAIN);
                   },
                   {}});
  calls.push_back({"sigwaitinfo",
                   Returns::kNever,
                   [set](int64_t) { return TimedOut(sigwaitinfo(&set, nullptr), SIGUSR2); },
                   {}});
  calls.push_back({"sigsuspend",
                   Returns::kNever,
                   [](int64_t) {
                     // A mask of its own for as long as it lasts.
                     sigset_t mask;
                     pthread_sigmask(SIG_BLOCK, nullptr, &mask);
                     sigaddset(&mask, SIGRTMAX);
                     return TimedOut(sigsuspend(&mask), 0);
                   },
                   {}});
  calls.push_back({"pause", Returns::kNever, [](int64_t) { return TimedOut(pause(), 0); }, {}});
  const int signals = Must(signalfd(-1, &set, SFD_CLOEXEC), "signalfd");
  calls.push_back({"signalfd_read",
                   Returns::kNever,
                   [signals](int64_t) {
                     signalfd_siginfo info;
                     return TimedOut(read(signals, &info, sizeof info), sizeof info);
                   },
                   {}});
}

constexpr int64_t kTicksEarlyNs = 20 * kNsPerMs;

void AddSocketTimeouts(std::vector<BlockingCall>& calls) {
  const int stream = MakeSocketPair().reader;
  calls.push_back({"recv_timeout_unix",
                   Returns::kAtTimeout,
                   [stream](int64_t ns) {
                     SetReceiveTimeout(stream, ns);
                     char byte;
                     return TimedOut(recv(stream, &byte, 1, 0), -1, EAGAIN);
                   },
                   {},
                   kTicksEarlyNs});
  const int datagrams = MakeInetSocket(SOCK_DGRAM);
  calls.push_back({"recv_timeout_udp",
                   Returns::kAtTimeout,
                   [datagrams](int64_t ns) {
                     SetReceiveTimeout(datagrams, ns);
                     char byte;
                     return TimedOut(recv(datagrams, &byte, 1, 0), -1, EAGAIN);
                   },
                   {},
                   kTicksEarlyNs});
  const int listener = MakeInetSocket(SOCK_STREAM);
  calls.push_back({"accept_timeout",
                   Returns::kAtTimeout,
                   [listener](int64_t ns) {
                     SetReceiveTimeout(listener, ns);
                     return TimedOut(accept(listener, nullptr, nullptr), -1, EAGAIN);
                   },
                   {},
                   kTicksEarlyNs});
  const int silent_listener = MakeInetSocket(SOCK_STREAM);
  calls.push_back({"accept",
                   Returns::kNever,
                   [silent_listener](int64_t) {
                     return TimedOut(accept(silent_listener, nullptr, nullptr), 0);
                   },
                   {}});
}

// Readers of a sequence of bytes: the kick writes the next one, the reader must get exactly that.
void AddByteReader(std::vector<BlockingCall>& calls, const char* name, Pair ends, bool use_epoll) {
  auto sent = std::make_shared<uint8_t>(0);
  auto received = std::make_shared<uint8_t>(0);
  const int epoll = use_epoll ? MakeEpoll(ends.reader) : -1;
  calls.push_back({name, Returns::kWhenKicked,
                   [=](int64_t) {
                     if (epoll >= 0) {
                       epoll_event event;
                       const int ready = epoll_wait(epoll, &event, 1, -1);
                       if (ready != 1) return ready == -1 ? errno : EPROTO;
                       if (event.data.fd != ends.reader) return EBADMSG;
                     }
                     uint8_t byte = 0;
                     const ssize_t size = read(ends.reader, &byte, 1);
                     if (size != 1) return size == -1 ? errno : EPROTO;
                     return byte == (*received)++ ? 0 : EBADMSG;
                   },
                   [=] { Must(write(ends.writer, sent.get(), 1), "write"), ++*sent; }});
}

void AddKickedCalls(std::vector<BlockingCall>& calls) {
  AddByteReader(calls, "pipe_read", MakePipe(), false);
  AddByteReader(calls, "recv_unix", MakeSocketPair(), false);
  AddByteReader(calls, "epoll_wait_forever", MakePipe(), true);

  // Kick number n adds n. Reads take whole kicks, so what was read so far is always a sum of the
  // first so many numbers.
  const int event = Must(eventfd(0, EFD_CLOEXEC), "eventfd");
  struct Sums {
    uint64_t kicks_sent = 0;
    uint64_t kicks_read = 0;
  };
  auto sums = std::make_shared<Sums>();
  calls.push_back({"eventfd_read", Returns::kWhenKicked,
                   [event, sums](int64_t) {
                     uint64_t value = 0;
                     if (read(event, &value, sizeof value) == -1) return errno;
                     if (value == 0) return EBADMSG;
                     while (value > sums->kicks_read) value -= ++sums->kicks_read;
                     return value == 0 ? 0 : EBADMSG;
                   },
                   [event, sums] {
                     const uint64_t value = ++sums->kicks_sent;
                     Must(write(event, &value, sizeof value), "write to the eventfd");
                   }});

  auto word = std::make_shared<std::atomic<uint32_t>>(0);
  struct Wakes {
    uint32_t seen = 0;
    uint32_t woken = 0;
  };
  auto wakes = std::make_shared<Wakes>();
  calls.push_back({"futex_forever", Returns::kWhenKicked,
                   [word, wakes](int64_t) {
                     do {
                       if (Futex(word.get(), FUTEX_WAIT_PRIVATE, wakes->seen, nullptr) == 0) {
                         ++wakes->woken;
                       } else if (errno != EAGAIN) {
                         return errno;
                       }
                       // A wake may come after its value was seen, but never more wakes than kicks.
                       if (wakes->woken > *word) return EPROTO;
                     } while (*word == wakes->seen);
                     wakes->seen = *word;
                     return 0;
                   },
                   [word] {
                     (*word)++;
                     Must(Futex(word.get(), FUTEX_WAKE_PRIVATE, 1, nullptr), "futex");
                   }});
}

void AddFutexAndTimerCalls(std::vector<BlockingCall>& calls) {
  auto word = std::make_shared<std::atomic<uint32_t>>(7);
  calls.push_back({"futex",
                   Returns::kAtTimeout,
                   [word](int64_t ns) {
                     const timespec timeout = ToTimespec(ns);
                     return TimedOut(Futex(word.get(), FUTEX_WAIT_PRIVATE, 7, &timeout), -1,
                                     ETIMEDOUT);
                   },
                   {}});
  calls.push_back({"futex_absolute",
                   Returns::kAtTimeout,
                   [word](int64_t ns) {
                     const timespec when = ToTimespec(NowNs() + ns);
                     return TimedOut(Futex(word.get(), FUTEX_WAIT_BITSET_PRIVATE, 7, &when), -1,
                                     ETIMEDOUT);
                   },
                   {}});
  const int timer = Must(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC), "timerfd_create");
  calls.push_back({"timerfd_read",
                   Returns::kAtTimeout,
                   [timer](int64_t ns) {
                     const itimerspec once = {{0, 0}, ToTimespec(ns)};
                     if (timerfd_settime(timer, 0, &once, nullptr) == -1) return errno;
                     uint64_t expirations = 0;
                     if (read(timer, &expirations, sizeof expirations) == -1) return errno;
                     return expirations == 1 ? 0 : EBADMSG;
                   },
                   {}});
}

}  // namespace

std::vector<BlockingCall> MakeBlockingCalls() {
  std::vector<BlockingCall> calls;
  AddPollingCalls(calls);
  AddSleepingCalls(calls);
  AddSignalCalls(calls);
  AddSocketTimeouts(calls);
  AddKickedCalls(calls);
  AddFutexAndTimerCalls(calls);
  return calls;
}

}  // namespace predump::workloads
