// Interval timers, pending signals with their values, dispositions, masks, the alternate stack.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <array>
#include <atomic>

#include "tests/workloads/holdings.h"

namespace predump::workloads {
namespace {

// Handlers get no argument, so what they note is here.
std::atomic<uint64_t> g_handlers_run = 0;
std::array<std::atomic<uint64_t>, NSIG> g_received = {};
std::atomic<uint64_t> g_off_stack = 0;
std::atomic<uintptr_t> g_stack_start = 0;
std::array<siginfo_t, 16> g_infos;
std::atomic<size_t> g_info_count = 0;

constexpr size_t kAlternateStackBytes = 64 << 10;

void CountSignal(int number) {
  const auto here = reinterpret_cast<uintptr_t>(&number);
  if (here - g_stack_start >= kAlternateStackBytes) g_off_stack++;
  g_received[static_cast<size_t>(number)]++;
  g_handlers_run++;
}

void RecordSignal(int, siginfo_t* info, void*) {
  const size_t index = g_info_count++;
  if (index < g_infos.size()) g_infos[index] = *info;
  g_handlers_run++;
}

int QueuedSignal() { return SIGRTMIN + 11; }
int DirectedSignal() { return SIGRTMIN + 12; }

void Handle(int number, void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART | SA_ONSTACK;
  Must(sigaction(number, &action, nullptr), "sigaction");
}

// Three interval timers, each with a handler that counts on the alternate stack.
class IntervalTimers : public Holding {
 public:
  explicit IntervalTimers(const HoldingContext& context)
      : context_(context), stack_(kAlternateStackBytes) {
    const stack_t stack = {stack_.data(), 0, stack_.size()};
    Must(sigaltstack(&stack, nullptr), "sigaltstack");
    g_stack_start = reinterpret_cast<uintptr_t>(stack_.data());
    for (const Timer& timer : kTimers) {
      Handle(timer.signal, CountSignal);
      const timeval interval = {0, timer.interval_us};
      const itimerval value = {interval, interval};
      Must(setitimer(timer.which, &value, nullptr), "setitimer");
      counters_.push_back(&context.workload().AddCounter(timer.name));
    }
    start_ns_ = last_alarm_ns_ = NowNs();
  }

  void Verify(uint64_t) override {
    for (size_t i = 0; i < std::size(kTimers); ++i) {
      const Timer& timer = kTimers[i];
      itimerval value = {};
      getitimer(timer.which, &value);
      context_.CheckEqual(value.it_interval.tv_usec, timer.interval_us, timer.name);
      context_.Check(
          value.it_value.tv_sec == 0 && value.it_value.tv_usec <= timer.interval_us + kTickUs,
          "time left on an interval timer");
      *counters_[i] = g_received[static_cast<size_t>(timer.signal)].load();
    }
    if (g_off_stack.exchange(0) != 0) {
      context_.Check(false, "a handler did not run on the alternate stack");
    }
    const uint64_t alarms = g_received[SIGALRM];
    const int64_t now_ns = NowNs();
    if (alarms != alarms_) {
      alarms_ = alarms;
      last_alarm_ns_ = now_ns;
    }
    const int64_t interval_ns = kTimers[0].interval_us * 1000;
    context_.Check(now_ns - last_alarm_ns_ < interval_ns + context_.settings().late_ms * kNsPerMs,
                   "SIGALRM no longer comes");
    const auto most = static_cast<uint64_t>((now_ns - start_ns_) / interval_ns + 1);
    context_.Check(alarms <= most, "more SIGALRM than there was time for");
  }

 private:
  struct Timer {
    int which;
    int signal;
    int64_t interval_us;
    const char* name;
  };
  static constexpr Timer kTimers[] = {{ITIMER_REAL, SIGALRM, 50'000, "itimer_real_signals"},
                                      {ITIMER_VIRTUAL, SIGVTALRM, 20'000, "itimer_virtual_signals"},
                                      {ITIMER_PROF, SIGPROF, 20'000, "itimer_prof_signals"}};
  static constexpr int64_t kTickUs = 10'000;  // CPU timers round up to the scheduler's tick

  const HoldingContext context_;
  std::vector<std::byte> stack_;
  std::vector<Counter*> counters_;
  int64_t start_ns_ = 0;
  int64_t last_alarm_ns_ = 0;
  uint64_t alarms_ = 0;
};

// Signals sent to ourselves while blocked: some to the process with values, some to the thread,
// one plain. Looked at while they wait, let in after a while, compared, sent again.
class PendingSignals : public Holding {
 public:
  explicit PendingSignals(const HoldingContext& context) : context_(context) {
    struct sigaction action = {};
    action.sa_sigaction = RecordSignal;
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    sigfillset(&action.sa_mask);
    sigemptyset(&set_);
    for (const int number : {QueuedSignal(), DirectedSignal(), SIGUSR2}) {
      sigaddset(&set_, number);
      Must(sigaction(number, &action, nullptr), "sigaction");
    }
    Must(sigprocmask(SIG_BLOCK, &set_, nullptr), "sigprocmask");
    Send();
  }

  void Verify(uint64_t iteration) override {
    sigset_t pending;
    sigpending(&pending);
    for (const int number : {QueuedSignal(), DirectedSignal(), SIGUSR2}) {
      context_.CheckEqual(sigismember(&pending, number), 1, "a pending signal");
    }
    if (iteration % 16 == 3) CheckQueues();
    if (iteration % static_cast<uint64_t>(context_.settings().cycle_iterations) == 11) {
      Receive();
      Send();
    }
  }
  void Final() override { Receive(); }

 private:
  void Send() {
    ++cycle_;
    for (int i = 0; i < 3; ++i) {
      sigval value;
      value.sival_ptr = reinterpret_cast<void*>(Value(i));
      Must(sigqueue(getpid(), QueuedSignal(), value), "sigqueue");
    }
    for (int i = 3; i < 5; ++i) {
      siginfo_t info = {};
      info.si_code = SI_QUEUE;
      info.si_pid = getpid();
      info.si_uid = getuid();
      info.si_value.sival_ptr = reinterpret_cast<void*>(Value(i));
      Must(syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), DirectedSignal(), &info),
           "rt_tgsigqueueinfo");
    }
    Must(kill(getpid(), SIGUSR2), "kill");
  }

  // All 64 bits are used.
  uintptr_t Value(int index) const {
    return cycle_ * 0x0123456789ABCDEF + static_cast<uintptr_t>(index);
  }

  // The thread's own queue and the process's are different ones.
  void CheckQueues() const {
    FILE* file = fopen("/proc/self/status", "re");
    if (!context_.Check(file != nullptr, "/proc/self/status", true)) return;
    std::array<char, 256> line;
    unsigned long thread = 0;
    unsigned long process = 0;
    while (fgets(line.data(), line.size(), file) != nullptr) {
      sscanf(line.data(), "SigPnd: %lx", &thread);
      sscanf(line.data(), "ShdPnd: %lx", &process);
    }
    fclose(file);
    const auto has = [](unsigned long mask, int number) { return (mask >> (number - 1) & 1) != 0; };
    context_.Check(has(thread, DirectedSignal()) && !has(process, DirectedSignal()),
                   "a signal for the thread waits elsewhere");
    context_.Check(has(process, QueuedSignal()) && !has(thread, QueuedSignal()),
                   "a signal for the process waits elsewhere");
    context_.Check(has(process, SIGUSR2) && !has(thread, SIGUSR2),
                   "a plain signal waits elsewhere");
  }

  void Receive() {
    g_info_count = 0;
    Must(sigprocmask(SIG_UNBLOCK, &set_, nullptr), "sigprocmask");
    Must(sigprocmask(SIG_BLOCK, &set_, nullptr), "sigprocmask");
    context_.CheckEqual(static_cast<int64_t>(g_info_count), 6, "number of pending signals");
    int plain = 0;
    int next_queued = 0;
    int next_directed = 3;
    for (size_t i = 0; i < std::min<size_t>(g_info_count, g_infos.size()); ++i) {
      const siginfo_t& info = g_infos[i];
      context_.CheckEqual(info.si_pid, getpid(), "sender of a pending signal");
      context_.CheckEqual(info.si_uid, getuid(), "uid of a pending signal");
      if (info.si_signo == SIGUSR2) {
        ++plain;
        context_.CheckEqual(info.si_code, SI_USER, "code of a plain signal");
        continue;
      }
      // Handlers nest with everything blocked, so the order is that of the queue.
      const int index = info.si_signo == QueuedSignal() ? next_queued++ : next_directed++;
      context_.CheckEqual(info.si_code, SI_QUEUE, "code of a queued signal");
      context_.Check(info.si_value.sival_ptr == reinterpret_cast<void*>(Value(index)),
                     "value of a queued signal");
    }
    context_.Check(plain == 1 && next_queued == 3 && next_directed == 5, "kinds of signals");
  }

  const HoldingContext context_;
  sigset_t set_;
  uint64_t cycle_ = 0;
};

// Dispositions of all signals, the mask and the alternate stack, as they are when this is made.
class SignalTable : public Holding {
 public:
  explicit SignalTable(const HoldingContext& context) : context_(context) {
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    struct sigaction action = {};
    action.sa_handler = CountSignal;
    action.sa_flags = SA_NODEFER | SA_RESETHAND;
    sigaddset(&action.sa_mask, SIGWINCH);
    sigaddset(&action.sa_mask, SIGRTMAX);
    Must(sigaction(SIGINT, &action, nullptr), "sigaction");
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGQUIT);
    sigaddset(&set, SIGRTMAX - 1);
    Must(sigprocmask(SIG_BLOCK, &set, nullptr), "sigprocmask");
    for (int number = 1; number < NSIG; ++number) actions_[Index(number)] = Get(number);
    sigprocmask(SIG_BLOCK, nullptr, &mask_);
    sigaltstack(nullptr, &stack_);
  }

  void Verify(uint64_t) override {
    for (int number = 1; number < NSIG; ++number) {
      const KernelAction found = Get(number);
      if (memcmp(&found, &actions_[Index(number)], sizeof found) == 0) continue;
      context_.workload().Error("signal %d: handler %#lx flags %#lx mask %#lx", number,
                                found.handler, found.flags, found.mask);
      actions_[Index(number)] = found;
    }
    sigset_t mask;
    sigprocmask(SIG_BLOCK, nullptr, &mask);
    context_.Check(memcmp(&mask, &mask_, kMaskBytes) == 0, "the signal mask changed");
    stack_t stack;
    sigaltstack(nullptr, &stack);
    context_.Check(stack.ss_sp == stack_.ss_sp && stack.ss_size == stack_.ss_size &&
                       stack.ss_flags == stack_.ss_flags,
                   "the alternate stack changed");
  }

 private:
  static constexpr size_t kMaskBytes = 8;  // what the kernel has of a sigset_t
  // As rt_sigaction(2) has it: with the restorer, which the libc's hides.
  struct KernelAction {
    unsigned long handler;
    unsigned long flags;
    unsigned long restorer;
    unsigned long mask;
  };
  static size_t Index(int number) { return static_cast<size_t>(number); }
  static KernelAction Get(int number) {
    KernelAction action = {};
    syscall(SYS_rt_sigaction, number, nullptr, &action, kMaskBytes);
    return action;
  }

  const HoldingContext context_;
  std::array<KernelAction, NSIG> actions_ = {};
  sigset_t mask_;
  stack_t stack_;
};

}  // namespace

uint64_t HandlersRun() { return g_handlers_run; }

Holdings MakeSignalHoldings(const HoldingContext& context) {
  Holdings holdings;
  if (context.Wants("itimers")) holdings.push_back(std::make_unique<IntervalTimers>(context));
  if (context.Wants("pending-signals")) {
    holdings.push_back(std::make_unique<PendingSignals>(context));
  }
  if (context.Wants("signal-table")) holdings.push_back(std::make_unique<SignalTable>(context));
  return holdings;
}

}  // namespace predump::workloads
