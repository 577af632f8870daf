// eventfd, epoll, timerfd, signalfd.
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <array>
#include <map>

#include "tests/workloads/holdings.h"

namespace predump::workloads {
namespace {

bool ReadCount(int fd, uint64_t* value) { return read(fd, value, sizeof *value) == sizeof *value; }

// A counter that is never left at zero, and a semaphore.
class EventDescriptors : public Holding {
 public:
  explicit EventDescriptors(const HoldingContext& context)
      : context_(context),
        counter_(Must(eventfd(1000, EFD_NONBLOCK), "eventfd")),
        wants_semaphore_(context.Wants("semaphore")),
        semaphore_(Must(eventfd(5, EFD_NONBLOCK | EFD_SEMAPHORE | EFD_CLOEXEC), "eventfd")) {}

  void Verify(uint64_t iteration) override {
    Add(counter_, iteration % 7 + 1);
    expected_ += iteration % 7 + 1;
    uint64_t value = 0;
    if (iteration % 10 == 9) {
      context_.Check(ReadCount(counter_, &value), "read of an eventfd", true);
      context_.CheckEqual(static_cast<int64_t>(value), static_cast<int64_t>(expected_), "eventfd");
      expected_ = 77;
      Add(counter_, expected_);
    }
    if (!wants_semaphore_) return;
    // Down to nothing and up to five again.
    for (int i = 0; i < 5; ++i) {
      context_.Check(ReadCount(semaphore_, &value) && value == 1, "semaphore eventfd");
    }
    context_.Check(!ReadCount(semaphore_, &value) && errno == EAGAIN, "semaphore is above five");
    Add(semaphore_, 5);
  }

 private:
  void Add(int fd, uint64_t value) {
    context_.Check(write(fd, &value, sizeof value) == sizeof value, "write to an eventfd", true);
  }

  const HoldingContext context_;
  int counter_;
  bool wants_semaphore_;
  int semaphore_;
  uint64_t expected_ = 1000;
};

// One epoll set with members in every mode, each with data of its own.
class EpollSet : public Holding {
 public:
  explicit EpollSet(const HoldingContext& context)
      : context_(context),
        epoll_(Must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1")),
        spurious_edges_(context.workload().AddCounter("epoll_spurious_edges")) {
    level_ = AddMember(eventfd(1, EFD_NONBLOCK), EPOLLIN, kLevel);
    silent_ = AddMember(eventfd(0, EFD_NONBLOCK), EPOLLIN | EPOLLPRI, kSilent);
    edge_ = AddMember(eventfd(0, EFD_NONBLOCK), EPOLLIN | EPOLLET, kEdge);
    once_ = AddMember(eventfd(1, EFD_NONBLOCK), EPOLLIN | EPOLLONESHOT, kOnce);
    Collect();
    context_.Check(seen_.contains(kOnce), "EPOLLONESHOT did not report at first");
  }

  void Verify(uint64_t iteration) override {
    Collect();
    context_.CheckEqual(Events(kLevel), EPOLLIN, "level-triggered member");
    context_.CheckEqual(Events(kSilent), 0, "silent member");
    // Restoring an edge-triggered member may bring one edge too many, which programs must bear.
    if (Events(kEdge) != 0) spurious_edges_++;
    context_.CheckEqual(Events(kOnce), 0, "EPOLLONESHOT that has fired");

    const uint64_t one = 1;
    Require(write(edge_, &one, sizeof one) == sizeof one, "write");
    const bool rearm = iteration % 5 == 4;
    if (rearm) {
      epoll_event event = {};
      event.events = EPOLLIN | EPOLLONESHOT;
      event.data.u64 = kOnce;
      Must(epoll_ctl(epoll_, EPOLL_CTL_MOD, once_, &event), "EPOLL_CTL_MOD");
    }
    Collect();
    context_.CheckEqual(Events(kEdge), EPOLLIN, "edge-triggered member after a write");
    context_.CheckEqual(Events(kOnce), rearm ? int64_t{EPOLLIN} : 0, "EPOLLONESHOT");
  }

 private:
  // The upper halves tell whether all 64 bits travel.
  static constexpr uint64_t kLevel = 0x1111111100000001;
  static constexpr uint64_t kSilent = 0x2222222200000002;
  static constexpr uint64_t kEdge = 0x3333333300000003;
  static constexpr uint64_t kOnce = 0x4444444400000004;

  int AddMember(int fd, uint32_t events, uint64_t data) {
    Must(fd, "eventfd");
    epoll_event event = {};
    event.events = events;
    event.data.u64 = data;
    Must(epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event), "EPOLL_CTL_ADD");
    return fd;
  }

  void Collect() {
    std::array<epoll_event, 8> events;
    seen_.clear();
    const int count = epoll_wait(epoll_, events.data(), events.size(), 0);
    if (!context_.Check(count >= 0, "epoll_wait", true)) return;
    for (int i = 0; i < count; ++i) {
      const epoll_event& event = events[static_cast<size_t>(i)];
      seen_[event.data.u64] = event.events;
    }
  }
  int64_t Events(uint64_t data) { return seen_.contains(data) ? seen_[data] : 0; }

  const HoldingContext context_;
  int epoll_;
  Counter& spurious_edges_;
  int level_ = -1, silent_ = -1, edge_ = -1, once_ = -1;
  std::map<uint64_t, uint32_t> seen_;
};

// A periodic timer whose ticks are all accounted for, and one that goes off once.
class TimerDescriptors : public Holding {
 public:
  explicit TimerDescriptors(const HoldingContext& context)
      : context_(context),
        periodic_(Must(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), "timerfd_create")),
        once_(Must(timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK | TFD_CLOEXEC), "timerfd_create")),
        idle_(Must(timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK), "timerfd_create")) {
    const itimerspec period = {ToTimespec(kPeriodNs), ToTimespec(kPeriodNs)};
    start_ns_ = NowNs();
    Must(timerfd_settime(periodic_, 0, &period, nullptr), "timerfd_settime");
    ArmOnce();
  }

  void Verify(uint64_t iteration) override {
    if (iteration % 50 == 49) CheckPeriodic();
    CheckOnce();
    uint64_t ticks = 0;
    itimerspec left;
    timerfd_gettime(idle_, &left);
    context_.Check(
        !ReadCount(idle_, &ticks) && left.it_value.tv_sec == 0 && left.it_value.tv_nsec == 0,
        "a disarmed timerfd ticks");
  }

 private:
  static constexpr int64_t kPeriodNs = 20 * kNsPerMs;
  static constexpr int64_t kOnceNs = 300 * kNsPerMs;

  void CheckPeriodic() {
    uint64_t ticks = 0;
    if (ReadCount(periodic_, &ticks)) ticks_ += static_cast<int64_t>(ticks);
    const int64_t expected = (NowNs() - start_ns_) / kPeriodNs;
    // A restored timer starts from the time left, so a little may be lost, never many ticks.
    const int64_t allowed = 1 + context_.settings().late_ms * kNsPerMs / kPeriodNs;
    if (ticks_ > expected + 1 || ticks_ < expected - allowed) {
      context_.workload().Error("timerfd: %ld ticks, %ld expected", ticks_, expected);
      ticks_ = expected;
    }
    itimerspec left;
    timerfd_gettime(periodic_, &left);
    context_.CheckEqual(left.it_interval.tv_nsec, kPeriodNs, "interval of a timerfd");
    const int64_t left_ns = left.it_value.tv_sec * kNsPerSecond + left.it_value.tv_nsec;
    context_.Check(left_ns >= 0 && left_ns <= kPeriodNs, "time left on a timerfd");
    // Nothing is left while it is due and the processor has not come to it; it is never disarmed.
    due_looks_ = left_ns == 0 ? due_looks_ + 1 : 0;
    context_.Check(due_looks_ < 3, "a periodic timerfd stands still");
  }

  void ArmOnce() {
    const itimerspec once = {{0, 0}, ToTimespec(kOnceNs)};
    armed_ns_ = NowNs(CLOCK_BOOTTIME);
    Must(timerfd_settime(once_, 0, &once, nullptr), "timerfd_settime");
  }

  // Expired and not read for a while, so that pending expirations are held too.
  void CheckOnce() {
    const int64_t before_ns = NowNs(CLOCK_BOOTTIME) - armed_ns_;
    itimerspec left;
    timerfd_gettime(once_, &left);
    const bool armed = left.it_value.tv_sec != 0 || left.it_value.tv_nsec != 0;
    const int64_t after_ns = NowNs(CLOCK_BOOTTIME) - armed_ns_;
    context_.Check(armed || after_ns >= kOnceNs - kNsPerMs, "a timerfd went off early");
    const int64_t late_ns = context_.settings().late_ms * kNsPerMs;
    context_.Check(!armed || before_ns <= kOnceNs + late_ns, "a timerfd is late");
    if (armed || before_ns < 2 * kOnceNs) return;
    uint64_t ticks = 0;
    context_.Check(ReadCount(once_, &ticks) && ticks == 1, "an expired timerfd lost its tick");
    ArmOnce();
  }

  const HoldingContext context_;
  int periodic_, once_, idle_;
  int64_t start_ns_ = 0;
  int64_t ticks_ = 0;
  int due_looks_ = 0;  // in a row with nothing left
  int64_t armed_ns_ = 0;
};

// A signal that waits in a signalfd, with its value.
class SignalDescriptor : public Holding {
 public:
  explicit SignalDescriptor(const HoldingContext& context) : context_(context) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, Signal());
    Must(sigprocmask(SIG_BLOCK, &set, nullptr), "sigprocmask");
    fd_ = Must(signalfd(-1, &set, SFD_NONBLOCK), "signalfd");
    Queue();
  }

  void Verify(uint64_t iteration) override {
    if (iteration % static_cast<uint64_t>(context_.settings().cycle_iterations) != 7) return;
    signalfd_siginfo info = {};
    context_.CheckEqual(read(fd_, &info, sizeof info), sizeof info, "read of a signalfd");
    context_.Check(info.ssi_signo == static_cast<uint32_t>(Signal()) && info.ssi_code == SI_QUEUE &&
                       info.ssi_int == value_ && info.ssi_pid == static_cast<uint32_t>(getpid()),
                   "a signalfd gave another signal");
    context_.Check(read(fd_, &info, sizeof info) == -1 && errno == EAGAIN,
                   "a signalfd gave a signal twice");
    Queue();
  }

 private:
  static int Signal() { return SIGRTMIN + 10; }
  void Queue() {
    sigval value;
    value.sival_int = ++value_;
    Must(sigqueue(getpid(), Signal(), value), "sigqueue");
  }

  const HoldingContext context_;
  int fd_ = -1;
  int value_ = 1000;
};

}  // namespace

Holdings MakeEventHoldings(const HoldingContext& context) {
  Holdings holdings;
  if (context.Wants("eventfd")) holdings.push_back(std::make_unique<EventDescriptors>(context));
  if (context.Wants("epoll")) holdings.push_back(std::make_unique<EpollSet>(context));
  if (context.Wants("timerfd")) holdings.push_back(std::make_unique<TimerDescriptors>(context));
  if (context.Wants("signalfd")) holdings.push_back(std::make_unique<SignalDescriptor>(context));
  return holdings;
}

}  // namespace predump::workloads
