// Many threads: some compute, one sleeps in each kind of blocking call, some count in restartable
// sequences, one holds a robust mutex it will die with.
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include <barrier>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "tests/workloads/blocking_calls.h"
#include "tests/workloads/compute_thread.h"
#include "tests/workloads/rseq_counter.h"
#include "tests/workloads/workload.h"

namespace predump::workloads {
namespace {

void NameThisThread(const std::string& name) {
  pthread_setname_np(pthread_self(), name.substr(0, 15).c_str());
}

struct Margins {
  int64_t early_ns;
  int64_t late_ns;
};

// Runs one blocking call for ever and judges each return.
class BlockedThread {
 public:
  BlockedThread(Workload& workload, BlockingCall& call, Margins margins)
      : workload_(workload),
        call_(call),
        margins_(margins),
        returns_(workload.AddCounter("calls_" + call.name)),
        random_(workload.seed()) {}

  void Run(const std::atomic<bool>& stop) {
    NameThisThread(call_.name);
    while (!stop) {
      const auto asked_ns = static_cast<int64_t>(20 + random_.Below(400)) * kNsPerMs;
      const int64_t start_ns = NowNs();
      const int error = call_.call(asked_ns);
      const int64_t took_ns = NowNs() - start_ns;
      if (error == EINTR) {
        workload_.CountEintr(call_.name.c_str());
        continue;
      }
      if (error != 0) workload_.Error("%s: %s", call_.name.c_str(), strerror(error));
      if (call_.returns == BlockingCall::Returns::kNever) {
        workload_.Error("%s returned", call_.name.c_str());
        return;
      }
      if (call_.returns == BlockingCall::Returns::kAtTimeout) JudgeTime(asked_ns, took_ns);
      returns_++;
    }
  }

 private:
  void JudgeTime(int64_t asked_ns, int64_t took_ns) {
    const int64_t early_ns = margins_.early_ns + call_.early_ns;
    if (took_ns >= asked_ns - early_ns && took_ns <= asked_ns + margins_.late_ns) return;
    workload_.Error("%s: asked for %.3f ms, took %.3f ms", call_.name.c_str(),
                    static_cast<double>(asked_ns) / kNsPerMs,
                    static_cast<double>(took_ns) / kNsPerMs);
  }

  Workload& workload_;
  BlockingCall& call_;
  const Margins margins_;
  Counter& returns_;
  Random random_;
};

// Waits on a condition variable nobody signals.
void RunTimedCondition(Workload& workload, Margins margins, const std::atomic<bool>& stop,
                       Counter& returns) {
  NameThisThread("cond_timedwait");
  std::mutex mutex;
  std::condition_variable never;
  Random random(workload.seed());
  while (!stop) {
    const auto asked_ns = static_cast<int64_t>(20 + random.Below(400)) * kNsPerMs;
    std::unique_lock lock(mutex);
    const int64_t start_ns = NowNs();
    // On the monotonic clock. A wake without a reason is allowed, so wait for the time itself.
    never.wait_for(lock, std::chrono::nanoseconds(asked_ns),
                   [&] { return NowNs() - start_ns >= asked_ns; });
    const int64_t took_ns = NowNs() - start_ns;
    if (took_ns < asked_ns - margins.early_ns || took_ns > asked_ns + margins.late_ns) {
      workload.Error("cond_timedwait: asked for %ld ns, took %ld ns", asked_ns, took_ns);
    }
    returns++;
  }
}

// Threads counting per CPU in rounds; after each round, nobody counting, the sums must agree.
class RseqGroup {
 public:
  struct Settings {
    int64_t threads;
    uint64_t spins;
    int64_t pause_ns;
  };

  RseqGroup(Workload& workload, const Settings& settings, std::atomic<bool>& stop)
      : workload_(workload),
        settings_(settings),
        stop_(stop),
        aborts_(workload.AddCounter("rseq_aborts")),
        increments_(workload.AddCounter("rseq_increments")),
        barrier_(settings.threads, Judge{this}) {
    workload.AddCounter("rseq_counts_start") = reinterpret_cast<uint64_t>(counter_.data());
  }

  void Run() {
    NameThisThread("rseq");
    while (!done_) {
      for (uint64_t i = 0; i < kIncrementsPerRound; ++i) {
        aborts_ += counter_.Increment(settings_.spins);
      }
      if (settings_.pause_ns > 0) SleepNs(workload_, settings_.pause_ns);
      barrier_.arrive_and_wait();
    }
  }

 private:
  static constexpr uint64_t kIncrementsPerRound = 200;
  struct Judge {
    RseqGroup* group;
    void operator()() noexcept { group->EndRound(); }
  };

  void EndRound() {
    expected_ += kIncrementsPerRound * static_cast<uint64_t>(settings_.threads);
    increments_ = expected_;
    if (counter_.Sum() != expected_) {
      workload_.Error("rseq: %lu increments, counters hold %lu", expected_, counter_.Sum());
      expected_ = counter_.Sum();
    }
    done_ = stop_.load();
  }

  Workload& workload_;
  const Settings settings_;
  std::atomic<bool>& stop_;
  RseqCounter counter_;
  Counter& aborts_;
  Counter& increments_;
  uint64_t expected_ = 0;
  std::atomic<bool> done_ = false;
  std::barrier<Judge> barrier_;
};

// A robust mutex held by a thread from the start, which exits with it at the end: whoever locks it
// next learns so only if the kernel still knew the thread's list.
class RobustMutex {
 public:
  RobustMutex() {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&mutex_, &attributes);
    std::atomic<bool> held = false;
    holder_ = std::thread([this, &held] {
      NameThisThread("robust-holder");
      pthread_mutex_lock(&mutex_);
      held = true;
      held.notify_one();
      may_exit_.wait(false);
    });
    held.wait(false);
  }

  void LetHolderDieAndJudge(Workload& workload) {
    may_exit_ = true;
    may_exit_.notify_one();
    holder_.join();
    // A lost list would leave the mutex locked for ever, so wait no longer than it can take.
    const timespec deadline = ToTimespec(NowNs(CLOCK_REALTIME) + 2 * kNsPerSecond);
    const int result = pthread_mutex_timedlock(&mutex_, &deadline);
    if (result != EOWNERDEAD) workload.Error("robust mutex: %s", strerror(result));
  }

 private:
  pthread_mutex_t mutex_;
  std::atomic<bool> may_exit_ = false;
  std::thread holder_;
};

void KickUntilStopped(Workload& workload, std::vector<BlockingCall>& calls,
                      const std::atomic<bool>& stop) {
  NameThisThread("kicker");
  while (!stop) {
    for (BlockingCall& call : calls) {
      if (call.kick) call.kick();
    }
    SleepNs(workload, 30 * kNsPerMs);
  }
}

// The main thread's own blocking call, ended by SIGTERM.
void WaitForStop(Workload& workload) {
  Heartbeat heartbeat(workload);
  while (!workload.StopRequested()) {
    heartbeat.Beat();
    SleepNs(workload, 20 * kNsPerMs);
  }
}

// One thread in each blocking call, one that kicks those that wait for it.
class BlockedGroup {
 public:
  BlockedGroup(Workload& workload, Margins margins, const std::atomic<bool>& stop)
      : calls_(MakeBlockingCalls()) {
    for (BlockingCall& call : calls_) {
      threads_.push_back(std::make_unique<BlockedThread>(workload, call, margins));
    }
    // Many never return: they are left where they are when the process ends.
    for (auto& thread : threads_) {
      std::thread([&stop, &thread] { thread->Run(stop); }).detach();
    }
    std::thread([this, &workload, &stop] { KickUntilStopped(workload, calls_, stop); }).detach();
  }

 private:
  std::vector<BlockingCall> calls_;
  std::vector<std::unique_ptr<BlockedThread>> threads_;
};

// The threads that are joined at the end: computing, counting, one in a timed condition.
class JoinedGroup {
 public:
  JoinedGroup(Workload& workload, const ComputeThread::Settings& compute,
              const RseqGroup::Settings& rseq, Margins margins, std::atomic<bool>& stop)
      : stop_(stop),
        rseq_(workload, rseq, stop),
        condition_returns_(workload.AddCounter("calls_cond_timedwait")) {
    for (size_t i = 0; i < compute.threads; ++i) {
      ComputeThread::Settings settings = compute;
      settings.index = i;
      computing_.push_back(std::make_unique<ComputeThread>(workload, table_, settings));
    }
    const CheckedPages& pages = computing_[0]->pages();
    workload.AddCounter("memory_start") = reinterpret_cast<uint64_t>(pages.page(0));
    workload.AddCounter("memory_bytes") = pages.pages() * kPageBytes;
    // From here on there is progress, so the report must be complete.
    for (auto& thread : computing_) threads_.emplace_back([&] { thread->Run(stop_); });
    for (int64_t i = 0; i < rseq.threads; ++i) threads_.emplace_back([this] { rseq_.Run(); });
    threads_.emplace_back([this, &workload, margins] {
      RunTimedCondition(workload, margins, stop_, condition_returns_);
    });
  }

  void StopAndJoin() {
    {
      std::lock_guard lock(table_.mutex);  // so that no waiter misses the last notification
      stop_ = true;
    }
    table_.changed.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  std::atomic<bool>& stop_;
  TurnTable table_;
  RseqGroup rseq_;
  Counter& condition_returns_;
  std::vector<std::unique_ptr<ComputeThread>> computing_;
  std::vector<std::thread> threads_;
};

int Main(int argc, char** argv) {
  Options options(argc, argv, "threads: every per-thread state, every blocking call");
  Workload workload("threads", options);
  const int64_t threads = options.Integer("threads", 4, "computing, 1 to 32");
  const int64_t memory_kib = options.Integer("memory-kib", 4096, "of each computing thread");
  const int64_t spins = options.Integer("spins", 100'000, "with live vector registers, per turn");
  const int64_t pause_us = options.Integer("pause-us", 500, "of computing threads, per turn");
  const int64_t late_ms = options.Integer("late-ms", 300, "a timed call may be late by");
  const int64_t early_us = options.Integer("early-us", 1000, "a timed call may be early by");
  const int64_t rseq_threads = options.Integer("rseq-threads", 3, "1 to 16");
  const int64_t rseq_spins = options.Integer("rseq-spins", 2000, "inside each sequence");
  const int64_t rseq_pause_us = options.Integer("rseq-pause-us", 5000, "per 200 sequences");
  const bool no_blocking = options.Flag("no-blocking", "no threads in blocking calls");
  options.Done();
  if (threads < 1 || threads > 32) Die("--threads: 1 to 32");
  if (rseq_threads < 1 || rseq_threads > 16) Die("--rseq-threads: 1 to 16");
  if (memory_kib < 4) Die("--memory-kib: at least 4");

  sigset_t set;  // inherited by all threads
  sigemptyset(&set);
  sigaddset(&set, SIGUSR2);
  Must(sigprocmask(SIG_BLOCK, &set, nullptr), "sigprocmask");

  std::atomic<bool> stop = false;
  const Margins margins = {early_us * 1000, late_ms * kNsPerMs};
  std::optional<BlockedGroup> blocked;
  if (!no_blocking) blocked.emplace(workload, margins, stop);
  RobustMutex robust;
  const ComputeThread::Settings compute = {0, static_cast<size_t>(threads),
                                           static_cast<size_t>(memory_kib) / 4,
                                           static_cast<uint64_t>(spins), pause_us * 1000};
  JoinedGroup joined(workload, compute,
                     {rseq_threads, static_cast<uint64_t>(rseq_spins), rseq_pause_us * 1000},
                     margins, stop);
  WaitForStop(workload);
  joined.StopAndJoin();
  robust.LetHolderDieAndJudge(workload);
  // Without destructors, for the sake of the threads that are left.
  _exit(workload.Finish());
}

}  // namespace
}  // namespace predump::workloads

int main(int argc, char** argv) { return predump::workloads::Main(argc, argv); }
