// Threads, signals, timers, credentials, memory: a child sets them up, the message is compared.
#include <fcntl.h>
#include <grp.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/rseq.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/user.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/images/image_constants.h"
#include "src/images/image_set.h"
#include "src/images/state_validation.h"
#include "src/kernel/procfs_maps.h"
#include "tests/checkpoint/forked_process.h"
#include "tests/support/proc_snapshot.h"

namespace predump::checkpoint {
namespace {

using ::predump::checkpoint::testing::CaptureOnce;
using ::predump::checkpoint::testing::ForkedProcess;
using ::predump::checkpoint::testing::Require;

proto::ProcessState Captured(const ForkedProcess& process) {
  auto state = CaptureOnce(process.handle());
  EXPECT_TRUE(state.ok()) << state.status();
  if (!state.ok()) return {};
  const absl::Status valid = images::ValidateState(*state, images::StateKind::kFull);
  EXPECT_TRUE(valid.ok()) << valid;
  return *std::move(state);
}

const criu::task_core_entry& Task(const proto::ProcessState& state) {
  return state.threads(0).core().tc();
}
const criu::thread_core_entry& Leader(const proto::ProcessState& state) {
  return state.threads(0).core().thread_core();
}

int32_t SignalNumber(const criu::siginfo_entry& entry) {
  int32_t number;
  std::memcpy(&number, entry.siginfo().data(), sizeof number);
  return number;
}

void Handler(int) {}

TEST(CaptureTask, SignalActionsMasksAndAlternateStack) {
  static char stack_memory[65536];
  const ForkedProcess child([] {
    struct sigaction action = {};
    action.sa_handler = Handler;
    action.sa_flags = SA_RESTART | SA_ONSTACK;
    sigaddset(&action.sa_mask, SIGHUP);
    Require(::sigaction(SIGUSR1, &action, nullptr) == 0, "sigaction");
    ::signal(SIGPIPE, SIG_IGN);
    stack_t stack = {.ss_sp = stack_memory, .ss_flags = 0, .ss_size = sizeof stack_memory};
    Require(::sigaltstack(&stack, nullptr) == 0, "sigaltstack");
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR2);
    sigaddset(&mask, SIGRTMIN + 1);
    Require(::sigprocmask(SIG_BLOCK, &mask, nullptr) == 0, "sigprocmask");
    ::raise(SIGUSR2);
    for (int i = 0; i < 3; ++i) {
      Require(::sigqueue(::getpid(), SIGRTMIN + 1, {.sival_int = 40 + i}) == 0, "sigqueue");
    }
  });
  const auto state = Captured(child);
  const auto& usr1 = Task(state).sigactions(SIGUSR1 - 2);  // SIGKILL is left out before it
  EXPECT_EQ(usr1.sigaction(), reinterpret_cast<uint64_t>(&Handler));
  EXPECT_EQ(usr1.flags() & (SA_RESTART | SA_ONSTACK), uint64_t{SA_RESTART | SA_ONSTACK});
  EXPECT_EQ(usr1.mask(), uint64_t{1} << (SIGHUP - 1));
  EXPECT_EQ(Task(state).sigactions(SIGPIPE - 2).sigaction(), 1u);
  EXPECT_EQ(Leader(state).sas().ss_sp(), reinterpret_cast<uint64_t>(stack_memory));
  EXPECT_EQ(Leader(state).sas().ss_size(), sizeof stack_memory);
  EXPECT_EQ(Task(state).blk_sigset(),
            uint64_t{1} << (SIGUSR2 - 1) | uint64_t{1} << (SIGRTMIN + 1 - 1));
  ASSERT_EQ(Leader(state).signals_p().signals_size(), 1);
  EXPECT_EQ(SignalNumber(Leader(state).signals_p().signals(0)), SIGUSR2);
  ASSERT_EQ(Task(state).signals_s().signals_size(), 3);
  for (int i = 0; i < 3; ++i) {
    siginfo_t info;
    std::memcpy(&info, Task(state).signals_s().signals(i).siginfo().data(), sizeof info);
    EXPECT_EQ(info.si_signo, SIGRTMIN + 1);
    EXPECT_EQ(info.si_value.sival_int, 40 + i);
  }
}

TEST(CaptureTask, IntervalTimers) {
  const ForkedProcess child([] {
    struct itimerval timer = {.it_interval = {2, 3}, .it_value = {1000, 0}};
    Require(::setitimer(ITIMER_REAL, &timer, nullptr) == 0, "setitimer");
    timer = {.it_interval = {0, 0}, .it_value = {500, 0}};
    Require(::setitimer(ITIMER_PROF, &timer, nullptr) == 0, "setitimer");
  });
  const auto state = Captured(child);
  EXPECT_EQ(Task(state).timers().real().isec(), 2u);
  EXPECT_EQ(Task(state).timers().real().iusec(), 3u);
  EXPECT_GE(Task(state).timers().real().vsec(), 990u);
  EXPECT_LT(Task(state).timers().real().vsec(), 1000u);
  EXPECT_EQ(Task(state).timers().virt().vsec(), 0u);
  EXPECT_EQ(Task(state).timers().virt().vusec(), 0u);
  EXPECT_GE(Task(state).timers().prof().vsec(), 499u);
  EXPECT_LE(Task(state).timers().prof().vsec(), 500u);
}

TEST(CaptureTask, CredentialsOfAnotherUser) {
  const ForkedProcess child([] {
    const gid_t groups[] = {10, 20, 30};
    Require(::setgroups(3, groups) == 0, "setgroups");
    Require(::prctl(PR_SET_KEEPCAPS, 1) == 0, "PR_SET_KEEPCAPS");
    Require(::setresgid(1001, 1002, 1003) == 0, "setresgid");
    Require(::setresuid(2001, 2002, 2003) == 0, "setresuid");
    Require(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "PR_SET_NO_NEW_PRIVS");
    Require(::prctl(PR_SET_DUMPABLE, 1) == 0, "PR_SET_DUMPABLE");
  });
  const auto state = Captured(child);
  const auto& creds = Leader(state).creds();
  EXPECT_EQ(creds.uid(), 2001u);
  EXPECT_EQ(creds.euid(), 2002u);
  EXPECT_EQ(creds.suid(), 2003u);
  EXPECT_EQ(creds.fsuid(), 2002u);
  EXPECT_EQ(creds.gid(), 1001u);
  EXPECT_EQ(creds.egid(), 1002u);
  EXPECT_EQ(creds.sgid(), 1003u);
  EXPECT_THAT(creds.groups(), ::testing::ElementsAre(10u, 20u, 30u));
  EXPECT_EQ(creds.no_new_privs(), 1u);
  EXPECT_EQ(creds.secbits(), 1u << 4);  // SECBIT_KEEP_CAPS
  EXPECT_EQ(creds.cap_eff(0), 0u);
  EXPECT_NE(creds.cap_prm(0), 0u);
  EXPECT_EQ(state.mm().dumpable(), 1);
}

TEST(CaptureTask, AttributesOfProcessAndThread) {
  const ForkedProcess child([] {
    ::umask(027);
    Require(::chdir("/usr") == 0, "chdir");
    Require(::prctl(PR_SET_NAME, "captured") == 0, "PR_SET_NAME");
    Require(::prctl(PR_SET_CHILD_SUBREAPER, 1) == 0, "PR_SET_CHILD_SUBREAPER");
    Require(::prctl(PR_SET_PDEATHSIG, SIGUSR2) == 0, "PR_SET_PDEATHSIG");
    Require(::prctl(PR_SET_TIMERSLACK, 12345) == 0, "PR_SET_TIMERSLACK");
    Require(::prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0, "PR_SET_THP_DISABLE");
    Require(::setpriority(PRIO_PROCESS, 0, 7) == 0, "setpriority");
    testing::SetTimeSlice(5'000'000);
    struct rlimit limit = {.rlim_cur = 100, .rlim_max = 4000};
    Require(::setrlimit(RLIMIT_NOFILE, &limit) == 0, "setrlimit");
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(1, &cpus);
    Require(::sched_setaffinity(0, sizeof cpus, &cpus) == 0, "sched_setaffinity");
    Require(::syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 3) == 0, "ioprio_set");
    Require(::syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0,
            "membarrier");
    const int fd = ::open("/proc/self/oom_score_adj", O_WRONLY);
    Require(::write(fd, "300", 3) == 3, "oom_score_adj");
    ::close(fd);
  });
  const auto state = Captured(child);
  EXPECT_EQ(state.fs().umask(), 027u);
  EXPECT_EQ(state.extra().working_directory(), "/usr");
  EXPECT_EQ(images::FileIndex(state).FindRegular(state.fs().cwd_id())->name(), "/usr");
  EXPECT_EQ(images::FileIndex(state).FindRegular(state.fs().root_id())->name(), "/");
  EXPECT_EQ(Task(state).comm(), "captured");
  EXPECT_TRUE(Task(state).child_subreaper());
  EXPECT_EQ(Task(state).oom_score_adj(), 300);
  EXPECT_EQ(Task(state).rlimits().rlimits(RLIMIT_NOFILE).cur(), 100u);
  EXPECT_EQ(Task(state).rlimits().rlimits(RLIMIT_NOFILE).max(), 4000u);
  EXPECT_EQ(Leader(state).pdeath_sig(), static_cast<uint32_t>(SIGUSR2));
  EXPECT_EQ(Leader(state).sched_nice(), 7);
  EXPECT_TRUE(state.mm().thp_disabled());
  const auto& extra = state.threads(0).extra();
  EXPECT_EQ(extra.timer_slack_ns(), 12345u);
  EXPECT_EQ(extra.io_priority(), 2u << 13 | 3u);
  EXPECT_EQ(extra.time_slice_ns(), 5'000'000u);
  ASSERT_GE(extra.cpu_affinity().size(), 8u);
  EXPECT_EQ(extra.cpu_affinity()[0], 2);
  EXPECT_EQ(state.extra().membarrier_registrations(),
            uint64_t{MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED});
}

TEST(CaptureTask, RegistersSignalMaskRobustListAndRseqOfEachThread) {
  const ForkedProcess child([] {
    static std::atomic<int> begun;  // and registered what each thread registers first
    for (int i = 0; i < 3; ++i) {
      std::thread([] {
        ++begun;
        while (true) ::pause();
      }).detach();
    }
    while (begun < 3) std::this_thread::yield();
  });
  const auto state = Captured(child);
  ASSERT_EQ(state.threads_size(), 4);
  EXPECT_EQ(state.threads(0).tid(), static_cast<uint32_t>(child.pid()));
  for (const auto& thread : state.threads()) {
    const auto& core = thread.core().thread_core();
    EXPECT_EQ(core.futex_rla_len(), 24u);
    EXPECT_NE(thread.core().thread_info().clear_tid_addr(), 0u);
    EXPECT_NE(thread.core().thread_info().gpregs().fs_base(), 0u);
    EXPECT_EQ(core.rseq_entry().signature(), 0x53053053u);
    struct user_regs_struct raw;
    ASSERT_EQ(thread.extra().raw_registers().size(), sizeof raw);
    std::memcpy(&raw, thread.extra().raw_registers().data(), sizeof raw);
    EXPECT_EQ(raw.rsp, thread.core().thread_info().gpregs().sp());
  }
}

TEST(CaptureTask, ExtendedStateIsDecodedAndRaw) {
  const ForkedProcess child(
      [] {},
      [] {
        // A known pattern in the upper halves of ymm7, kept in a loop without calls.
        alignas(32) static const uint64_t pattern[4] = {1, 2, 0x1122334455667788,
                                                        0x99aabbccddeeff00};
        asm volatile("vmovdqa %0, %%ymm7\n1: pause\n jmp 1b" ::"m"(pattern) : "xmm7");
      });
  // Until it has got there.
  proto::ProcessState state;
  uint64_t low = 0;
  for (int attempt = 0; attempt < 1000 && low != 1; ++attempt) {
    state = Captured(child);
    const auto& fpregs = state.threads(0).core().thread_info().fpregs();
    low = fpregs.xmm_space(7 * 4);
  }
  const auto& fpregs = state.threads(0).core().thread_info().fpregs();
  EXPECT_EQ(low, 1u);
  ASSERT_EQ(fpregs.xsave().ymmh_space_size(), 64);
  EXPECT_EQ(fpregs.xsave().ymmh_space(7 * 4), 0x55667788u);
  EXPECT_EQ(fpregs.xsave().ymmh_space(7 * 4 + 3), 0x99aabbccu);
  EXPECT_GE(state.threads(0).extra().xsave().size(), 832u);
}

// DESIGN 12, fact 6: what the sequence has done so far is void; it goes on at its abort address.
TEST(CaptureTask, AThreadInsideARestartableSequenceGoesOnAtItsAbortAddress) {
  const ForkedProcess child([] {},
                            [] {
                              static struct rseq_cs sequence = {};
                              auto* area = reinterpret_cast<struct rseq*>(
                                  static_cast<char*>(__builtin_thread_pointer()) + __rseq_offset);
                              asm volatile(
                                  "lea 1f(%%rip), %%rax\n mov %%rax, %0\n"
                                  "lea 2f(%%rip), %%rcx\n sub %%rax, %%rcx\n mov %%rcx, %1\n"
                                  "lea 4f(%%rip), %%rcx\n mov %%rcx, %2\n"
                                  "jmp 5f\n"
                                  // A preemption aborts the sequence; it starts itself again.
                                  ".long 0x53053053\n4: 5: mov %4, %3\n"
                                  "1: pause\n jmp 1b\n2:\n"
                                  : "=m"(sequence.start_ip), "=m"(sequence.post_commit_offset),
                                    "=m"(sequence.abort_ip), "=m"(area->rseq_cs)
                                  : "r"(&sequence)
                                  : "rax", "rcx", "memory");
                            });
  for (int attempt = 0; attempt < 1000; ++attempt) {
    const auto state = Captured(child);
    struct user_regs_struct raw;
    std::memcpy(&raw, state.threads(0).extra().raw_registers().data(), sizeof raw);
    const uint64_t ip = state.threads(0).core().thread_info().gpregs().ip();
    if (raw.rip == ip) continue;  // not in the sequence yet, or the kernel was faster
    EXPECT_LT(ip, raw.rip);
    EXPECT_GT(ip + 32, raw.rip) << "the abort address lies just before the loop";
    return;
  }
  FAIL() << "the thread was never stopped inside its sequence";
}

TEST(CaptureTask, InterruptedSleepKeepsItsRemainingTime) {
  const ForkedProcess child([] {},
                            [] {
                              struct timespec long_time = {.tv_sec = 1000, .tv_nsec = 0};
                              ::clock_nanosleep(CLOCK_MONOTONIC, 0, &long_time, nullptr);
                            });
  proto::ProcessState state;
  for (int i = 0; i < 1000 && !state.threads_size(); ++i) {
    auto captured = Captured(child);
    if (captured.threads(0).extra().has_interrupted_call()) state = captured;
  }
  ASSERT_EQ(state.threads_size(), 1);
  const auto& call = state.threads(0).extra().interrupted_call();
  EXPECT_EQ(call.number(), SYS_clock_nanosleep);
  EXPECT_GT(call.remaining_ns(), int64_t{990'000'000'000});
  EXPECT_LE(call.remaining_ns(), int64_t{1'000'000'000'000});
  EXPECT_EQ(state.threads(0).core().thread_info().gpregs().ax(), uint64_t{SYS_clock_nanosleep});
  EXPECT_EQ(state.threads(0).core().thread_info().gpregs().orig_ax(), ~uint64_t{0});
}

TEST(CaptureTask, InterruptedEpollWaitKeepsWhatIsLeftOfItsTimeout) {
  const ForkedProcess child([] {},
                            [] {
                              const int epoll = ::epoll_create1(0);
                              struct epoll_event event;
                              ::epoll_wait(epoll, &event, 1, 60'000);
                            });
  const int64_t started = base::MonotonicNanoseconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));  // the time that must be told
  const auto state = Captured(child);
  const int64_t waited = base::MonotonicNanoseconds() - started;
  const auto& call = state.threads(0).extra().interrupted_call();
  EXPECT_EQ(call.number(), SYS_epoll_wait);
  EXPECT_LE(call.remaining_ns(), 60'000'000'000 - 290'000'000);
  EXPECT_GE(call.remaining_ns(), 60'000'000'000 - waited - 100'000'000);
  EXPECT_LE(state.threads(0).core().thread_info().gpregs().r10(), 59'720u);
}

TEST(CaptureTask, TemporaryMaskIsTheOneThatHolds) {
  const ForkedProcess child([] {},
                            [] {
                              sigset_t mask;
                              sigfillset(&mask);
                              sigdelset(&mask, SIGTERM);
                              while (true) ::sigsuspend(&mask);
                            });
  proto::ProcessState state;
  for (int i = 0; i < 1000 && !state.threads_size(); ++i) {
    auto captured = Captured(child);
    if (captured.threads(0).extra().has_temporary_signal_mask()) state = captured;
  }
  ASSERT_EQ(state.threads_size(), 1);
  EXPECT_EQ(Task(state).blk_sigset(), 0u);
  EXPECT_EQ(state.threads(0).extra().temporary_signal_mask() & uint64_t{1} << (SIGTERM - 1), 0u);
  EXPECT_NE(state.threads(0).extra().temporary_signal_mask() & uint64_t{1} << (SIGHUP - 1), 0u);
}

TEST(CaptureTask, MappingsAndAddresses) {
  static void* advised = nullptr;
  advised = ::mmap(nullptr, 1 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  const ForkedProcess child([] {
    Require(::madvise(advised, 1 << 20, MADV_DONTFORK) == 0, "madvise");
    Require(::mlock(advised, 4096) == 0, "mlock");
  });
  const auto state = Captured(child);
  ::munmap(advised, 1 << 20);
  const auto& mm = state.mm();
  EXPECT_LT(mm.mm_start_brk(), mm.mm_brk() + 1);
  EXPECT_LT(mm.mm_arg_start(), mm.mm_arg_end());
  EXPECT_EQ(mm.mm_saved_auxv_size() % 2, 0);
  bool found = false;
  bool vdso = false;
  bool executable = false;
  for (const auto& vma : mm.vmas()) {
    if (vma.start() == reinterpret_cast<uint64_t>(advised)) {
      found = true;
      EXPECT_EQ(vma.end() - vma.start(), 4096u);  // mlock split it
      EXPECT_NE(vma.flags() & MAP_LOCKED, 0u);
      EXPECT_NE(vma.flags() & MAP_NORESERVE, 0u);
      EXPECT_NE(vma.madv() & uint64_t{1} << MADV_DONTFORK, 0u);
    }
    if ((vma.status() & images::kVmaVdso) != 0) vdso = true;
    if (vma.shmid() == mm.exe_file_id()) executable = true;
  }
  EXPECT_TRUE(found);
  EXPECT_TRUE(vdso);
  EXPECT_TRUE(executable);
  EXPECT_GT(images::FileIndex(state).FindRegular(mm.exe_file_id())->build_id_size(), 0);
}

// Where device numbers in maps are not those of stat(2), the survey looks at the file itself.
TEST(CaptureTask, AMappingThatIsGoneWhenTheSurveyLooksIsLeftOut) {
  const ForkedProcess child([] {});
  auto capturer = Capturer::Create(child.handle(), {});
  ASSERT_TRUE(capturer.ok()) << capturer.status();
  auto vmas = pagemap::VmaList::Read(child.handle(), true);
  ASSERT_TRUE(vmas.ok()) << vmas.status();
  constexpr uint64_t kGone = 0x700000000000;
  const auto gone = kernel::ParseMaps("700000000000-700000001000 r--p 00000000 ff:ff 1 /bin/sh\n");
  ASSERT_TRUE(gone.ok()) << gone.status();
  auto& all = vmas->mutable_vmas();
  const auto after = std::find_if(all.begin(), all.end(), [](const pagemap::Vma& vma) {
    return vma.range.start().value() > kGone;
  });
  all.insert(after, pagemap::ClassifyMapping(gone->front(), {}));
  const auto survey = capturer->Survey(*vmas);
  ASSERT_TRUE(survey.ok()) << survey.status();
  EXPECT_TRUE(survey->blockers.empty()) << survey->blockers.front().reason();
  EXPECT_GT(survey->preview.mm().vmas_size(), 0);
  for (const auto& mapping : survey->preview.mm().vmas()) EXPECT_NE(mapping.start(), kGone);

  // Frozen, nothing may go: then it is an error.
  auto frozen = kernel::FrozenProcess::Freeze(child.handle(), absl::Seconds(5));
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  EXPECT_EQ(base::ErrnoOf(capturer->Capture(*frozen, *vmas).status()), ENOENT);
}

TEST(CaptureTask, LeavesNoTrace) {
  const ForkedProcess child([] {
    int ends[2];
    Require(::pipe(ends) == 0, "pipe");
    Require(::write(ends[1], "data", 4) == 4, "write");
    Require(::socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) == 0, "socketpair");
    Require(::write(ends[1], "data", 4) == 4, "write");
    // A thread starts with all signals blocked; seen from outside that is a difference.
    static std::atomic<int> running = 0;
    for (int i = 0; i < 3; ++i) {
      std::thread([] {
        running.fetch_add(1);
        running.notify_one();
        while (true) ::pause();
      }).detach();
    }
    for (int seen = running; seen < 3; seen = running) running.wait(seen);
  });
  const auto before = test_support::ProcSnapshot::Take(child.pid());
  ASSERT_TRUE(before.ok()) << before.status();
  Captured(child);
  const auto after = test_support::ProcSnapshot::Take(child.pid());
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_THAT(before->Diff(*after), ::testing::IsEmpty());
}

TEST(CaptureTask, TimeForOneFourAndSixtyFourThreads) {
  for (const int threads : {1, 4, 64}) {
    const ForkedProcess child([threads] {
      for (int i = 1; i < threads; ++i) {
        std::thread([] {
          while (true) ::pause();
        }).detach();
      }
    });
    auto capturer = Capturer::Create(child.handle(), {});
    ASSERT_TRUE(capturer.ok()) << capturer.status();
    const auto survey_vmas = pagemap::VmaList::Read(child.handle(), true);
    ASSERT_TRUE(survey_vmas.ok());
    ASSERT_TRUE(capturer->Survey(*survey_vmas).ok());
    std::vector<double> microseconds;
    for (int i = 0; i < 20; ++i) {
      auto frozen = kernel::FrozenProcess::Freeze(child.handle(), absl::Seconds(5));
      ASSERT_TRUE(frozen.ok()) << frozen.status();
      const auto vmas = pagemap::VmaList::Read(child.handle(), false);
      ASSERT_TRUE(vmas.ok());
      const base::Stopwatch watch;
      const auto state = capturer->Capture(*frozen, *vmas);
      microseconds.push_back(absl::ToDoubleMicroseconds(watch.Elapsed()));
      ASSERT_TRUE(state.ok()) << state.status();
      ASSERT_EQ(state->threads_size(), threads);
      ASSERT_TRUE(std::move(*frozen).Thaw().ok());
    }
    std::sort(microseconds.begin(), microseconds.end());
    std::printf("capture of %d threads: median %.0f us, maximum %.0f us\n", threads,
                microseconds[microseconds.size() / 2], microseconds.back());
    EXPECT_LT(microseconds[microseconds.size() / 2], 50'000);
  }
}

}  // namespace
}  // namespace predump::checkpoint
