#include "src/kernel/bpf/task_capture.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/membarrier.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "src/base/errors.h"
#include "tests/kernel/bpf/test_child.h"

namespace predump::kernel {
namespace {

using testing::Shared;
using testing::TestChild;

constexpr int kMaxThreads = 64;
constexpr uint64_t kSecond = 1'000'000'000;
// linux/prctl.h since 6.6
constexpr int kSetMdwe = 65;
constexpr unsigned long kRefuseExecGain = 1;
constexpr unsigned long kNoInherit = 2;

// What each thread knows of itself.
struct ThreadFacts {
  pid_t tid;
  uint64_t stack_address;
  uint64_t clear_child_tid;
  uint64_t robust_list;
  uint64_t blocked;
  uint64_t pending;
};

struct Facts {
  std::atomic<int> ready;
  std::atomic<int> next_index;
  ThreadFacts threads[kMaxThreads];
  uint64_t handler;
  uint64_t brk;
  uint64_t dispatch_selector;
  int posix_timer;
  pid_t pid;
};

constexpr size_t kStackBytes = 32768;
char g_stacks[kMaxThreads][kStackBytes];
int g_tid_words[kMaxThreads];
void* g_robust_heads[kMaxThreads][3];
char g_selector = 0;

uint64_t Bit(int signal_number) { return 1ull << (signal_number - 1); }

void OnSignal(int, siginfo_t*, void*) {}

// Every thread differs from the others in each of these.
void DescribeThread(Facts& facts) {
  const int i = facts.next_index.fetch_add(1);
  ThreadFacts& mine = facts.threads[i];
  mine.tid = static_cast<pid_t>(syscall(SYS_gettid));

  stack_t stack = {};
  stack.ss_sp = g_stacks[i];
  stack.ss_size = kStackBytes - 16 * static_cast<size_t>(i);
  sigaltstack(&stack, nullptr);
  mine.stack_address = reinterpret_cast<uint64_t>(g_stacks[i]);

  mine.clear_child_tid = reinterpret_cast<uint64_t>(&g_tid_words[i]);
  syscall(SYS_set_tid_address, &g_tid_words[i]);
  g_robust_heads[i][0] = &g_robust_heads[i][0];
  mine.robust_list = reinterpret_cast<uint64_t>(&g_robust_heads[i]);
  syscall(SYS_set_robust_list, &g_robust_heads[i], 24);

  const int private_signal = SIGRTMIN + 1 + i % 20;
  mine.blocked = Bit(SIGHUP) | Bit(SIGUSR2) | Bit(private_signal);
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mine.blocked, nullptr, 8);
  syscall(SYS_tgkill, syscall(SYS_getpid), mine.tid, private_signal);
  mine.pending = Bit(private_signal);

  prctl(PR_SET_NAME, ("thread-" + std::to_string(i)).c_str());
  prctl(PR_SET_TIMERSLACK, 1000ul + static_cast<unsigned long>(i));
  facts.ready.fetch_add(1);
}

void* RunThread(void* facts) {
  DescribeThread(*static_cast<Facts*>(facts));
  while (true) pause();
}

void SetTimers(Facts& facts) {
  const itimerval real = {{7, 0}, {1000, 0}};
  setitimer(ITIMER_REAL, &real, nullptr);
  const itimerval virtual_timer = {{8, 0}, {2000, 0}};
  setitimer(ITIMER_VIRTUAL, &virtual_timer, nullptr);
  const itimerval profiling = {{9, 0}, {3000, 0}};
  setitimer(ITIMER_PROF, &profiling, nullptr);
  sigevent event = {};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGRTMIN + 5;
  event.sigev_value.sival_ptr = reinterpret_cast<void*>(0xabcdef);
  syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &facts.posix_timer);
  const itimerspec posix = {{3, 0}, {4000, 0}};
  syscall(SYS_timer_settime, facts.posix_timer, 0, &posix, nullptr);
}

void SetProcessState(Facts& facts) {
  struct sigaction action = {};
  action.sa_sigaction = OnSignal;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  sigaddset(&action.sa_mask, SIGTERM);
  sigaction(SIGUSR1, &action, nullptr);
  facts.handler = reinterpret_cast<uint64_t>(&OnSignal);
  signal(SIGPIPE, SIG_IGN);

  prctl(PR_SET_PDEATHSIG, SIGTERM);
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  prctl(kSetMdwe, kRefuseExecGain | kNoInherit, 0, 0, 0);
  personality(ADDR_NO_RANDOMIZE);
  syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0);
  const int oom = open("/proc/self/oom_score_adj", O_WRONLY);
  [[maybe_unused]] ssize_t written = write(oom, "123", 3);
  close(oom);
  const rlimit files = {77, 99};
  setrlimit(RLIMIT_NOFILE, &files);
  umask(027);
  setpriority(PRIO_PROCESS, 0, 5);
  sched_param parameters = {};
  sched_setscheduler(0, SCHED_BATCH | SCHED_RESET_ON_FORK, &parameters);
  syscall(SYS_ioprio_set, 1, 0, (2 << 13) | 3);
  mlockall(MCL_FUTURE | MCL_ONFAULT);
  facts.brk = reinterpret_cast<uint64_t>(sbrk(8192)) + 8192;
  SetTimers(facts);
  kill(facts.pid, SIGHUP);  // blocked by now: stays pending for the process
}

// For the main thread alone; threads created later would inherit some of it.
void SetLastState(Facts& facts) {
  sock_filter allow[] = {{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW}};
  const sock_fprog filter = {1, allow};
  syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter);
  prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, 0, 0, &g_selector);
  facts.dispatch_selector = reinterpret_cast<uint64_t>(&g_selector);
  prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
}

void RunProcess(Facts& facts, int threads) {
  facts.pid = static_cast<pid_t>(syscall(SYS_getpid));
  DescribeThread(facts);
  for (int i = 1; i < threads; ++i) {
    pthread_t thread;
    pthread_create(&thread, nullptr, RunThread, &facts);
  }
  while (facts.ready.load() < threads) sched_yield();
  SetProcessState(facts);
  SetLastState(facts);
  facts.ready.fetch_add(1);
  while (true) pause();
}

struct Scene {
  explicit Scene(int threads,
                 TestChild::PidNamespace pid_namespace = TestChild::PidNamespace::kSame)
      : child([this, threads] { RunProcess(*facts, threads); }, pid_namespace) {
    EXPECT_TRUE(testing::Eventually([&] { return facts->ready.load() == threads + 1; }));
    EXPECT_TRUE(TestChild::WaitUntilInside(child.pid(), SYS_pause));
  }
  Shared<Facts> facts;
  TestChild child;
};

class TaskCaptureTest : public ::testing::TestWithParam<std::tuple<int, TestChild::PidNamespace>> {
 protected:
  int threads() const { return std::get<0>(GetParam()); }
  bool nested() const { return std::get<1>(GetParam()) == TestChild::PidNamespace::kNew; }

  void SetUp() override {
    scene_ = std::make_unique<Scene>(threads(), std::get<1>(GetParam()));
    auto capture = TaskCapture::Create(scene_->child.pid());
    ASSERT_TRUE(capture.ok()) << capture.status();
    auto snapshot = capture->Read();
    ASSERT_TRUE(snapshot.ok()) << snapshot.status();
    snapshot_ = *std::move(snapshot);
  }

  std::unique_ptr<Scene> scene_;
  TaskSnapshot snapshot_;
};

TEST_P(TaskCaptureTest, ThreadsAreAsEachThreadSetItself) {
  ASSERT_EQ(snapshot_.threads.size(), static_cast<size_t>(threads()));
  for (int i = 0; i < threads(); ++i) {
    const ThreadFacts& facts = scene_->facts->threads[i];
    const auto thread =
        std::find_if(snapshot_.threads.begin(), snapshot_.threads.end(),
                     [&](const ThreadRecord& record) { return record.tid.own == facts.tid; });
    ASSERT_NE(thread, snapshot_.threads.end()) << "thread " << facts.tid;
    EXPECT_EQ(thread->alt_stack_address, facts.stack_address);
    EXPECT_EQ(thread->alt_stack_bytes, kStackBytes - 16 * static_cast<size_t>(i));
    EXPECT_EQ(thread->alt_stack_flags, 0u);
    EXPECT_EQ(thread->clear_child_tid, facts.clear_child_tid);
    EXPECT_EQ(thread->robust_list, facts.robust_list);
    EXPECT_EQ(thread->robust_list_bytes, 24u);
    EXPECT_EQ(thread->blocked, facts.blocked);
    EXPECT_EQ(thread->real_blocked, 0u);
    EXPECT_EQ(thread->restore_sigmask, 0u);
    EXPECT_EQ(thread->pending, facts.pending);
    EXPECT_EQ(thread->timer_slack, 1000u + static_cast<unsigned>(i));
    EXPECT_EQ(std::string(thread->comm), "thread-" + std::to_string(i));
    EXPECT_EQ(thread->exit_signal, i == 0 ? SIGCHLD : -1);
    EXPECT_EQ(thread->has_mm, 1u);
    EXPECT_EQ(thread->exit_state, 0u);
  }
}

TEST_P(TaskCaptureTest, IdsAreThoseOfEachNamespace) {
  const TaskIds& ids = snapshot_.process.tgid;
  EXPECT_EQ(ids.observer, scene_->child.pid());
  EXPECT_EQ(ids.own, scene_->facts->pid);
  if (nested()) {
    EXPECT_EQ(ids.own, 1);
    EXPECT_NE(ids.own, ids.observer);
  } else {
    EXPECT_EQ(ids.own, ids.observer);
  }
  EXPECT_EQ(snapshot_.threads[0].tid.observer, scene_->child.pid());
  for (const ThreadRecord& thread : snapshot_.threads) {
    EXPECT_EQ(access(("/proc/" + std::to_string(scene_->child.pid()) + "/task/" +
                      std::to_string(thread.tid.observer))
                         .c_str(),
                     F_OK),
              0);
  }
}

TEST_P(TaskCaptureTest, LeaderStateIsWhatTheMainThreadSet) {
  const ThreadRecord& leader = snapshot_.threads[0];
  EXPECT_EQ(leader.parent_death_signal, SIGTERM);
  EXPECT_EQ(leader.atomic_flags & 1, 1u);
  EXPECT_EQ(leader.personality, static_cast<uint32_t>(ADDR_NO_RANDOMIZE));
  EXPECT_EQ(leader.policy, static_cast<uint32_t>(SCHED_BATCH));
  EXPECT_EQ(leader.reset_on_fork, 1u);
  EXPECT_EQ(leader.static_priority, 125);
  EXPECT_EQ(leader.realtime_priority, 0u);
  EXPECT_EQ(leader.io_priority, (2u << 13) | 3u);
  EXPECT_EQ(leader.seccomp_mode, 2);
  EXPECT_EQ(leader.seccomp_filters, 1);
  EXPECT_EQ(leader.has_io_uring, 0u);
  EXPECT_EQ(leader.dispatch_on, 1u);
  EXPECT_EQ(leader.dispatch_selector, scene_->facts->dispatch_selector);
  for (size_t i = 1; i < snapshot_.threads.size(); ++i) {
    EXPECT_EQ(snapshot_.threads[i].dispatch_on, 0u);
    EXPECT_EQ(snapshot_.threads[i].seccomp_mode, 0);
    EXPECT_EQ(snapshot_.threads[i].parent_death_signal, 0);
    EXPECT_EQ(snapshot_.threads[i].static_priority, 120);
  }
}

TEST_P(TaskCaptureTest, ProcessStateIsWhatTheProcessSet) {
  const ProcessRecord& process = snapshot_.process;
  const SignalAction& usr1 = process.actions[SIGUSR1 - 1];
  EXPECT_EQ(usr1.handler, scene_->facts->handler);
  EXPECT_EQ(usr1.flags & (SA_SIGINFO | SA_RESTART), static_cast<uint64_t>(SA_SIGINFO | SA_RESTART));
  EXPECT_EQ(usr1.mask, Bit(SIGTERM));
  EXPECT_NE(usr1.restorer, 0u);
  EXPECT_EQ(process.actions[SIGPIPE - 1].handler, 1u);
  EXPECT_EQ(process.actions[SIGTERM - 1].handler, 0u);
  EXPECT_EQ(process.shared_pending, Bit(SIGHUP));
  EXPECT_EQ(process.thread_count, threads());
  EXPECT_EQ(process.is_child_subreaper, 1u);
  EXPECT_EQ(process.oom_score_adj, 123);
  EXPECT_EQ(process.resource_limits[RLIMIT_NOFILE][0], 77u);
  EXPECT_EQ(process.resource_limits[RLIMIT_NOFILE][1], 99u);
  EXPECT_EQ(process.signal_flags & 1, 0u);
  EXPECT_EQ(process.umask, 027u);
}

TEST_P(TaskCaptureTest, MemoryLayoutIsWhatTheProcessSees) {
  const ProcessRecord& process = snapshot_.process;
  EXPECT_EQ(process.has_mm, 1u);
  EXPECT_EQ(process.brk, scene_->facts->brk);
  EXPECT_LT(process.start_brk, process.brk);
  EXPECT_LT(process.start_code, process.end_code);
  EXPECT_LT(process.arg_start, process.arg_end);
  EXPECT_LE(process.arg_end, process.env_start);
  EXPECT_EQ(process.thp_disabled, 1u);
  EXPECT_EQ(process.dumpable, 0u);
  EXPECT_EQ(process.mdwe, 3u);
  EXPECT_EQ(process.memory_merge_any, 0u);
  EXPECT_NE(process.membarrier_state, 0u);
  constexpr uint64_t kLockedOnFault = 0x2000 | 0x80000;
  EXPECT_EQ(process.default_vm_flags & kLockedOnFault, kLockedOnFault);
  struct stat self = {};
  ASSERT_EQ(stat("/proc/self/exe", &self), 0);
  EXPECT_EQ(process.executable_inode, self.st_ino);
  EXPECT_EQ(process.executable_device, self.st_dev);
}

TEST_P(TaskCaptureTest, TimersTellWhatIsLeft) {
  const ProcessRecord& process = snapshot_.process;
  EXPECT_EQ(process.real_timer_armed, 1u);
  EXPECT_EQ(process.real_timer_interval, 7 * kSecond);
  const uint64_t real_left = process.real_timer_expires - process.monotonic_now;
  EXPECT_LE(real_left, 1000 * kSecond);
  EXPECT_GT(real_left, 980 * kSecond);
  EXPECT_EQ(process.virtual_timer.interval, 8 * kSecond);
  const uint64_t virtual_left = process.virtual_timer.expires - process.virtual_timer.now;
  // setitimer(2) rounds CPU timers up by a tick, 10 ms at most.
  EXPECT_LE(virtual_left, 2000 * kSecond + kSecond / 100);
  EXPECT_GT(virtual_left, 1990 * kSecond);
  EXPECT_EQ(process.profiling_timer.interval, 9 * kSecond);
  const uint64_t profiling_left = process.profiling_timer.expires - process.profiling_timer.now;
  EXPECT_LE(profiling_left, 3000 * kSecond + kSecond / 100);
  EXPECT_GT(profiling_left, 2990 * kSecond);

  EXPECT_EQ(process.posix_timer_count, 1u);
  ASSERT_EQ(snapshot_.posix_timers.size(), 1u);
  const PosixTimerRecord& timer = snapshot_.posix_timers[0];
  EXPECT_EQ(timer.id, scene_->facts->posix_timer);
  EXPECT_EQ(timer.clock_id, CLOCK_MONOTONIC);
  EXPECT_EQ(timer.notify, SIGEV_SIGNAL);
  EXPECT_EQ(timer.signal, SIGRTMIN + 5);
  EXPECT_EQ(timer.value, 0xabcdefu);
  EXPECT_EQ(timer.known, 1u);
  EXPECT_NE(timer.armed, 0u);
  EXPECT_EQ(timer.interval, 3 * kSecond);
  EXPECT_EQ(timer.base_clock_id, CLOCK_MONOTONIC);
  EXPECT_LE(timer.expires - timer.now, 4000 * kSecond);
  EXPECT_GT(timer.expires - timer.now, 3980 * kSecond);
}

INSTANTIATE_TEST_SUITE_P(ThreadsAndNamespaces, TaskCaptureTest,
                         ::testing::Combine(::testing::Values(1, 4, kMaxThreads),
                                            ::testing::Values(TestChild::PidNamespace::kSame,
                                                              TestChild::PidNamespace::kNew)));

TEST(TaskCapture, ReadTakesMicroseconds) {
  for (const int threads : {4, kMaxThreads}) {
    Scene scene(threads);
    const auto before = std::chrono::steady_clock::now();
    auto capture = TaskCapture::Create(scene.child.pid());
    ASSERT_TRUE(capture.ok()) << capture.status();
    const auto created = std::chrono::steady_clock::now();
    auto best = std::chrono::nanoseconds::max();
    for (int i = 0; i < 50; ++i) {
      const auto start = std::chrono::steady_clock::now();
      const auto snapshot = capture->Read();
      best = std::min<std::chrono::nanoseconds>(best, std::chrono::steady_clock::now() - start);
      ASSERT_TRUE(snapshot.ok()) << snapshot.status();
      ASSERT_EQ(snapshot->threads.size(), static_cast<size_t>(threads));
    }
    std::printf("%d threads: Create %.1f ms, Read %.1f us\n", threads,
                std::chrono::duration<double, std::milli>(created - before).count(),
                std::chrono::duration<double, std::micro>(best).count());
    // Over ten times what it takes, so that a slow machine passes and a walk of procfs does not.
    EXPECT_LT(best, std::chrono::milliseconds(1));
  }
}

TEST(TaskCapture, GroupStopIsSeen) {
  Scene scene(4);
  ASSERT_EQ(kill(scene.child.pid(), SIGSTOP), 0);
  auto capture = TaskCapture::Create(scene.child.pid());
  ASSERT_TRUE(capture.ok()) << capture.status();
  EXPECT_TRUE(testing::Eventually([&] {
    const auto snapshot = capture->Read();
    return snapshot.ok() && (snapshot->process.signal_flags & 1) == 1;
  }));
}

TEST(TaskCapture, MissingProcessIsTargetExited) {
  TestChild child([] {});
  const pid_t pid = child.pid();
  child.Wait();
  EXPECT_TRUE(base::IsTargetExited(TaskCapture::Create(pid).status()));
}

TEST(TaskCapture, ZombieAndReapedProcessAreTargetExited) {
  TestChild child([] {
    while (true) pause();
  });
  auto capture = TaskCapture::Create(child.pid());
  ASSERT_TRUE(capture.ok()) << capture.status();
  EXPECT_TRUE(capture->Read().ok());
  kill(child.pid(), SIGKILL);
  siginfo_t info;
  ASSERT_EQ(waitid(P_PID, static_cast<id_t>(child.pid()), &info, WEXITED | WNOWAIT), 0);
  EXPECT_TRUE(base::IsTargetExited(capture->Read().status()));
  child.Wait();
  EXPECT_TRUE(base::IsTargetExited(capture->Read().status()));
}

TEST(TaskCapture, DefaultsAreSeenAsDefaults) {
  TestChild child([] {
    while (true) pause();
  });
  ASSERT_TRUE(TestChild::WaitUntilInside(child.pid(), SYS_pause));
  auto capture = TaskCapture::Create(child.pid());
  ASSERT_TRUE(capture.ok()) << capture.status();
  const auto snapshot = capture->Read();
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  const ProcessRecord& process = snapshot->process;
  EXPECT_EQ(process.mdwe, 0u);
  EXPECT_EQ(process.thp_disabled, 0u);
  EXPECT_EQ(process.memory_merge_any, 0u);
  EXPECT_EQ(process.dumpable, 1u);
  EXPECT_EQ(process.is_child_subreaper, 0u);
  EXPECT_EQ(process.real_timer_armed, 0u);
  EXPECT_EQ(process.posix_timer_count, 0u);
  EXPECT_EQ(process.default_vm_flags & 0x2000, 0u);
  EXPECT_EQ(process.shared_pending, 0u);
  const ThreadRecord& leader = snapshot->threads.at(0);
  EXPECT_EQ(leader.atomic_flags & 1, 0u);
  EXPECT_EQ(leader.dispatch_on, 0u);
  EXPECT_EQ(leader.seccomp_mode, 0);
  EXPECT_EQ(leader.reset_on_fork, 0u);
  EXPECT_EQ(leader.alt_stack_bytes, 0u);
  EXPECT_EQ(leader.pending, 0u);
}

TEST(TaskCapture, MorePosixTimersThanFitAreCounted) {
  Shared<Facts> facts;
  TestChild child([&] {
    for (int i = 0; i < 200; ++i) {
      sigevent event = {};
      event.sigev_notify = SIGEV_NONE;
      int id = 0;
      syscall(SYS_timer_create, CLOCK_REALTIME, &event, &id);
    }
    facts->ready = 1;
    while (true) pause();
  });
  ASSERT_TRUE(testing::Eventually([&] { return facts->ready.load() == 1; }));
  auto capture = TaskCapture::Create(child.pid());
  ASSERT_TRUE(capture.ok()) << capture.status();
  const auto snapshot = capture->Read();
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  EXPECT_EQ(snapshot->process.posix_timer_count, 200u);
  EXPECT_EQ(snapshot->posix_timers.size(), 128u);
  EXPECT_EQ(snapshot->posix_timers[0].armed, 0u);
}

}  // namespace
}  // namespace predump::kernel
