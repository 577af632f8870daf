#include "src/kernel/readout_injection.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ptrace.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/kernel/vdso_padding.h"
#include "tests/kernel/child_process.h"
#include "tests/kernel/process_snapshot.h"

namespace predump::kernel {
namespace {

struct Progress {
  std::atomic<long> steps;
  std::atomic<long> wrong;
  std::atomic<long> returns;
  std::atomic<long> started;
  std::atomic<long> readouts;
};

// Computes and calls, and counts every sum or result that is not what it has to be.
void ComputeAndCheck(Progress& progress) {
  unsigned long hash = 1;
  for (long n = 0;; ++n) {
    unsigned long values[64];
    for (unsigned long i = 0; i < 64; ++i) values[i] = hash + i * i;
    hash = hash * 6364136223846793005ul + 1442695040888963407ul;
    unsigned long left = 0;
    for (unsigned long i = 0; i < 64; ++i) left ^= (values[i] - i * i) ^ values[0];
    if (left != 0) ++progress.wrong;
    const struct timespec nap = {0, 20'000};
    if (n % 50 == 0 && ::nanosleep(&nap, nullptr) != 0) ++progress.wrong;
    if (n % 33 == 0 && ::getppid() <= 0) ++progress.wrong;
    ++progress.steps;
  }
}

std::vector<std::byte> ReadPadding(const ProcessHandle& process) {
  const auto maps = ReadMaps(process);
  const auto memory = ProcessMemory::Open(process, O_RDONLY);
  const auto padding = FindVdsoPadding(*maps, *memory);
  EXPECT_TRUE(padding.ok()) << padding.status();
  std::vector<std::byte> bytes(padding->size().value());
  EXPECT_TRUE(memory->ReadExactly(padding->start(), bytes).ok());
  return bytes;
}

bool AllZero(const std::vector<std::byte>& bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

// Some calls with and without buffers, for every thread.
std::vector<std::vector<ReadoutCall>> SomeCalls(size_t threads) {
  return std::vector<std::vector<ReadoutCall>>(
      threads, {{.number = SYS_gettid},
                {.number = SYS_sigaltstack, .buffer_argument = 1, .buffer_bytes = sizeof(stack_t)},
                {.number = SYS_rt_sigaction,
                 .arguments = {SIGUSR1, 0, 0, 8},
                 .buffer_argument = 2,
                 .buffer_bytes = 32}});
}

absl::Status FreezeAndReadOut(const ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(FrozenProcess frozen, FrozenProcess::Freeze(process, absl::Seconds(5)));
  const auto answers = ReadOut(frozen, SomeCalls(frozen.threads().size()));
  PREDUMP_RETURN_IF_ERROR(std::move(frozen).Thaw());
  return answers.status();
}

template <typename T>
T As(const ReadoutAnswer& answer) {
  T value;
  EXPECT_EQ(answer.bytes.size(), sizeof value);
  memcpy(&value, answer.bytes.data(), std::min(sizeof value, answer.bytes.size()));
  return value;
}

void Handler(int) {}

TEST(ReadoutInjectionTest, AsksEveryThreadAndPutsItBackAsItWas) {
  static char stack_memory[65536];
  SharedValue<Progress> progress;
  ChildProcess child([&] {
    struct sigaction action = {};
    action.sa_handler = Handler;
    ::sigaction(SIGUSR1, &action, nullptr);
    const stack_t stack = {.ss_sp = stack_memory, .ss_flags = 0, .ss_size = sizeof stack_memory};
    ::sigaltstack(&stack, nullptr);
    std::thread sleeper([] { ::pause(); });
    std::thread poller([] { ::poll(nullptr, 0, -1); });
    ComputeAndCheck(*progress);
  });
  const auto process = ProcessHandle::Open(child.pid());
  ASSERT_TRUE(process.ok()) << process.status();
  ASSERT_TRUE(Eventually([&] {
    if (progress->steps < 1000) return false;
    const auto tids = ListThreads(*process);
    for (const pid_t tid : *tids) {
      if (tid != child.pid() && ReadThreadStatus(*process, tid)->blocked != 0) return false;
    }
    return tids->size() == 3;
  }));
  const ProcessSnapshot before = TakeSnapshot(*process);
  auto frozen = FrozenProcess::Freeze(*process, absl::Seconds(5));
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  ASSERT_EQ(frozen->threads().size(), 3u);
  std::vector<user_regs_struct> registers;
  std::vector<uint64_t> masks;
  for (const Tracee& thread : frozen->threads()) {
    registers.push_back(*thread.GetRegisters());
    masks.push_back(*thread.GetSignalMask());
  }
  const long steps = progress->steps;

  const base::Stopwatch watch;
  const auto answers = ReadOut(*frozen, SomeCalls(3));
  printf("readout of 3 threads, 3 calls each: %.3f ms\n",
         absl::ToDoubleMilliseconds(watch.Elapsed()));
  ASSERT_TRUE(answers.ok()) << answers.status();
  for (size_t i = 0; i < 3; ++i) {
    const Tracee& thread = frozen->threads()[i];
    EXPECT_EQ((*answers)[i][0].result, thread.tid());
    EXPECT_EQ((*answers)[i][1].result, 0);
    const stack_t stack = As<stack_t>((*answers)[i][1]);
    EXPECT_EQ(stack.ss_size, i == 0 ? sizeof stack_memory : 0u);
    uint64_t action[4];
    ASSERT_EQ((*answers)[i][2].bytes.size(), sizeof action);
    memcpy(action, (*answers)[i][2].bytes.data(), sizeof action);
    EXPECT_EQ(action[0], reinterpret_cast<uint64_t>(&Handler));
    const user_regs_struct now = *thread.GetRegisters();
    EXPECT_EQ(memcmp(&now, &registers[i], sizeof now), 0) << "thread " << i;
    EXPECT_EQ(*thread.GetSignalMask(), masks[i]);
    EXPECT_EQ(ReadThreadStat(*process, thread.tid())->state, 't');
  }
  EXPECT_EQ(progress->steps, steps) << "the process ran";
  EXPECT_TRUE(AllZero(ReadPadding(*process)));
  EXPECT_EQ(TakeSnapshot(*process), before);
  ASSERT_TRUE(std::move(*frozen).Thaw().ok());
  EXPECT_TRUE(Eventually([&] { return progress->steps > steps + 1000; }));
  EXPECT_EQ(progress->wrong, 0);
  EXPECT_EQ(TakeSnapshot(*process), before);
}

TEST(ReadoutInjectionTest, ThreadsWithoutCallsAreLeftAlone) {
  ChildProcess child([] {
    for (;;) ::pause();
  });
  const auto process = ProcessHandle::Open(child.pid());
  auto frozen = FrozenProcess::Freeze(*process, absl::Seconds(5));
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  const std::vector<std::vector<ReadoutCall>> none(1);
  const auto answers = ReadOut(*frozen, none);
  ASSERT_TRUE(answers.ok()) << answers.status();
  EXPECT_TRUE((*answers)[0].empty());
  const std::vector<std::vector<ReadoutCall>> too_many(2);
  EXPECT_TRUE(absl::IsInvalidArgument(ReadOut(*frozen, too_many).status()));
  const std::vector<std::vector<ReadoutCall>> too_large(
      1, {{.number = SYS_getpid, .buffer_argument = 0, .buffer_bytes = 4097}});
  EXPECT_TRUE(absl::IsInvalidArgument(ReadOut(*frozen, too_large).status()));
}

int64_t FailedCall(long result) { return result < 0 ? -errno : result; }

// Each is made with a time to wait of 400 ms, and has to take that long: neither shorter, nor begun
// anew after the readouts.
const std::pair<const char*, std::function<int64_t()>> kTimedCalls[] = {
    {"nanosleep",
     [] {
       const struct timespec time = {0, 400'000'000};
       return FailedCall(::syscall(SYS_nanosleep, &time, nullptr));
     }},
    {"clock_nanosleep",
     [] {
       const struct timespec time = {0, 400'000'000};
       return FailedCall(::syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &time, nullptr));
     }},
    {"poll", [] { return FailedCall(::syscall(SYS_poll, nullptr, 0, 400)); }},
    {"futex",
     [] {
       uint32_t word = 7;
       const struct timespec time = {0, 400'000'000};
       const int64_t result =
           FailedCall(::syscall(SYS_futex, &word, FUTEX_WAIT, 7, &time, nullptr, 0));
       return result == -ETIMEDOUT ? 0 : result - 1000;
     }},
    {"select",
     [] {
       struct timeval time = {0, 400'000};
       return FailedCall(::syscall(SYS_select, 0, nullptr, nullptr, nullptr, &time));
     }},
};

TEST(ReadoutInjectionTest, TimedCallsGoOnWithTheirTime) {
  for (const auto& [name, call] : kTimedCalls) {
    SharedValue<std::atomic<int64_t>> took;
    SharedValue<std::atomic<int64_t>> result;
    ChildProcess child([&, call = call] {
      const int64_t start = base::MonotonicNanoseconds();
      *result = call();
      *took = base::MonotonicNanoseconds() - start;
    });
    const auto process = ProcessHandle::Open(child.pid());
    ASSERT_TRUE(Eventually([&] { return ReadStat(*process)->state == 'S'; }));
    for (int i = 0; i < 5; ++i) {
      SleepMs(40);
      const absl::Status status = FreezeAndReadOut(*process);
      ASSERT_TRUE(status.ok()) << name << ": " << status;
    }
    ASSERT_EQ(child.Reap(), 0) << name;
    EXPECT_EQ(*result, 0) << name;
    EXPECT_GE(*took, 400'000'000) << name;
    EXPECT_LT(*took, 550'000'000) << name << " began anew";
  }
}

TEST(ReadoutInjectionTest, WaitingCallsReturnNoEintr) {
  SharedValue<Progress> progress;
  ChildProcess child([&] {
    int ends[2];
    if (::pipe(ends) != 0) ::_exit(1);
    const auto repeat = [&](auto call) {
      std::thread([&progress, call] {
        for (;;) {
          if (call() < 0) ++progress->wrong;
          ++progress->returns;
        }
      }).detach();
    };
    repeat([] {
      const int epoll = ::epoll_create1(0);
      struct epoll_event event;
      const int result = ::epoll_wait(epoll, &event, 1, 30);
      ::close(epoll);
      return static_cast<long>(result);
    });
    repeat([&] {
      char byte;
      return static_cast<long>(::read(ends[0], &byte, 1));
    });
    repeat([] {
      struct timespec time = {0, 30'000'000};
      sigset_t mask;
      sigemptyset(&mask);
      return static_cast<long>(::ppoll(nullptr, 0, &time, &mask));
    });
    for (;;) {
      const struct timespec nap = {0, 5'000'000};
      if (::nanosleep(&nap, nullptr) != 0) ++progress->wrong;
      if (::write(ends[1], "x", 1) != 1) ++progress->wrong;
      ++progress->steps;
    }
  });
  const auto process = ProcessHandle::Open(child.pid());
  ASSERT_TRUE(Eventually([&] { return progress->returns > 10; }));
  for (int i = 0; i < 200; ++i) {
    const absl::Status status = FreezeAndReadOut(*process);
    ASSERT_TRUE(status.ok()) << status;
  }
  const long returns = progress->returns;
  EXPECT_TRUE(Eventually([&] { return progress->returns > returns + 20; }));
  EXPECT_EQ(progress->wrong, 0);
}

std::atomic<long>* handled = nullptr;

TEST(ReadoutInjectionTest, SignalsAreNeitherLostNorDoubled) {
  SharedValue<std::atomic<long>> count;
  SharedValue<Progress> progress;
  handled = &*count;
  ChildProcess child([&] {
    struct sigaction action = {};
    action.sa_handler = [](int) { handled->fetch_add(1); };
    action.sa_flags = SA_RESTART;
    ::sigaction(SIGRTMIN, &action, nullptr);
    ComputeAndCheck(*progress);
  });
  ASSERT_TRUE(Eventually([&] { return progress->steps > 100; }));
  const auto process = ProcessHandle::Open(child.pid());
  std::atomic<bool> stop = false;
  std::atomic<long> sent = 0;
  std::thread sender([&] {
    while (!stop) {
      if (::sigqueue(child.pid(), SIGRTMIN, {.sival_int = 0}) == 0) ++sent;
      ::usleep(50);
    }
  });
  absl::Status status;
  for (int i = 0; i < 500 && status.ok(); ++i) status = FreezeAndReadOut(*process);
  stop = true;
  sender.join();
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(Eventually([&] { return *count == sent; })) << *count << " of " << sent;
  EXPECT_GT(sent, 500);
}

TEST(ReadoutInjectionTest, StopSignalThatComesMeanwhileStopsTheProcessAfterwards) {
  SharedValue<Progress> progress;
  ChildProcess child([&] { ComputeAndCheck(*progress); });
  ASSERT_TRUE(Eventually([&] { return progress->steps > 100; }));
  const auto process = ProcessHandle::Open(child.pid());
  for (int i = 0; i < 20; ++i) {
    auto frozen = FrozenProcess::Freeze(*process, absl::Seconds(5));
    ASSERT_TRUE(frozen.ok()) << frozen.status();
    ASSERT_EQ(::kill(child.pid(), SIGSTOP), 0);
    const long steps = progress->steps;
    const auto answers = ReadOut(*frozen, SomeCalls(1));
    ASSERT_TRUE(answers.ok()) << answers.status();
    ASSERT_TRUE(std::move(*frozen).Thaw().ok());
    ASSERT_TRUE(Eventually([&] { return ReadStat(*process)->state == 'T'; }));
    EXPECT_EQ(progress->steps, steps);
    EXPECT_TRUE(absl::IsFailedPrecondition(FreezeAndReadOut(*process))) << "it is stopped";
    ASSERT_TRUE(Eventually([&] { return ReadStat(*process)->state == 'T'; }));
    EXPECT_EQ(progress->steps, steps);
    ASSERT_EQ(::kill(child.pid(), SIGCONT), 0);
    ASSERT_TRUE(Eventually([&] { return progress->steps > steps; }));
  }
}

TEST(ReadoutInjectionTest, LockingOfNewMemoryShowsOnTheNewPage) {
  for (const bool locks : {false, true}) {
    SharedValue<Progress> progress;
    ChildProcess child([&] {
      if (locks) ::mlockall(MCL_FUTURE);
      progress->started = 1;
      for (;;) ::pause();
    });
    ASSERT_TRUE(Eventually([&] { return progress->started == 1; }));
    const auto process = ProcessHandle::Open(child.pid());
    auto frozen = FrozenProcess::Freeze(*process, absl::Seconds(5));
    ASSERT_TRUE(frozen.ok()) << frozen.status();
    const std::vector<std::vector<ReadoutCall>> calls(
        1, {{.number = SYS_msync,
             .arguments = {0, 4096, MS_INVALIDATE | MS_ASYNC},
             .new_page_argument = 0}});
    const auto answers = ReadOut(*frozen, calls);
    ASSERT_TRUE(answers.ok()) << answers.status();
    EXPECT_EQ((*answers)[0][0].result, locks ? -EBUSY : 0);
  }
}

TEST(ReadoutInjectionTest, RefusesAConfinedThreadAndSurvivesAFullAddressSpace) {
  {
    SharedValue<Progress> progress;
    ChildProcess child([&] {
      struct sock_filter allow = {.code = 0x06, .jt = 0, .jf = 0, .k = SECCOMP_RET_ALLOW};
      struct sock_fprog program = {.len = 1, .filter = &allow};
      ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
      if (::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) ::_exit(1);
      ComputeAndCheck(*progress);
    });
    ASSERT_TRUE(Eventually([&] { return progress->steps > 100; }));
    const auto process = ProcessHandle::Open(child.pid());
    const absl::Status status = FreezeAndReadOut(*process);
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("seccomp"));
  }
  SharedValue<Progress> progress;
  ChildProcess child([&] {
    const struct rlimit limit = {.rlim_cur = 1, .rlim_max = RLIM_INFINITY};
    ::setrlimit(RLIMIT_AS, &limit);
    ComputeAndCheck(*progress);
  });
  ASSERT_TRUE(Eventually([&] { return progress->steps > 100; }));
  const auto process = ProcessHandle::Open(child.pid());
  const ProcessSnapshot before = TakeSnapshot(*process);
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(base::ErrnoOf(FreezeAndReadOut(*process)), ENOMEM);
    EXPECT_EQ(TakeSnapshot(*process), before);
  }
  const long steps = progress->steps;
  EXPECT_TRUE(Eventually([&] { return progress->steps > steps + 100; }));
  EXPECT_EQ(progress->wrong, 0);
}

// A restartable sequence that spins until it is released; an abort is counted.
struct RseqState {
  std::atomic<uint64_t> aborts;
  uint64_t spins;
  uint64_t release;
};

extern "C" char readout_rseq_start[], readout_rseq_end[], readout_rseq_abort[];

[[noreturn]] void SpinInsideRestartableSequence(RseqState& state) {
  struct alignas(32) Section {
    uint32_t version, flags;
    uint64_t start, length, abort;
  };
  static Section section;
  section = {0, 0, reinterpret_cast<uint64_t>(readout_rseq_start),
             static_cast<uint64_t>(readout_rseq_end - readout_rseq_start),
             reinterpret_cast<uint64_t>(readout_rseq_abort)};
  char* area = static_cast<char*>(__builtin_thread_pointer()) + __rseq_offset;
  for (;;) {
    int aborted = 0;
    asm volatile(
        "movq %[section], 8(%[area])\n"
        ".globl readout_rseq_start, readout_rseq_end, readout_rseq_abort\n"
        "readout_rseq_start:\n"
        "incq (%[spins])\n"
        "cmpq $0, (%[release])\n"
        "je readout_rseq_start\n"
        "readout_rseq_end:\n"
        "jmp 2f\n"
        ".byte 0x0f, 0xb9, 0x3d\n"
        ".long 0x53053053\n"
        "readout_rseq_abort:\n"
        "movl $1, %[aborted]\n"
        "2:\n"
        : [aborted] "+r"(aborted)
        : [section] "r"(&section), [area] "r"(area), [spins] "r"(&state.spins),
          [release] "r"(&state.release)
        : "memory", "cc");
    if (aborted != 0) ++state.aborts;
  }
}

TEST(ReadoutInjectionTest, RestartableSequenceIsAbortedNotContinued) {
  SharedValue<RseqState> state;
  ChildProcess child([&] { SpinInsideRestartableSequence(*state); });
  volatile uint64_t& spins = state->spins;
  ASSERT_TRUE(Eventually([&] { return spins > 1000; }));
  const auto process = ProcessHandle::Open(child.pid());
  for (int i = 0; i < 20; ++i) {
    const uint64_t aborts = state->aborts;
    const absl::Status status = FreezeAndReadOut(*process);
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(Eventually([&] { return state->aborts > aborts; }));
  }
}

TEST(ReadoutInjectionTest, ProcessSurvivesEnginesKilledAtAnyMoment) {
  constexpr int kDeaths = 400;
  const char* given = ::getenv("PREDUMP_TEST_SEED");
  unsigned seed = 0;
  if (given != nullptr) {
    seed = static_cast<unsigned>(::strtoul(given, nullptr, 10));
  } else {
    ASSERT_EQ(::getrandom(&seed, sizeof seed, 0), ssize_t{sizeof seed});
  }
  printf("PREDUMP_TEST_SEED=%u\n", seed);
  std::mt19937 random(seed);
  std::uniform_int_distribution<int> delay_us(0, 3000);

  SharedValue<Progress> progress;
  ChildProcess child([&] {
    std::thread([&] {
      for (;;) {
        if (::poll(nullptr, 0, 3) != 0) ++progress->wrong;
        ++progress->returns;
      }
    }).detach();
    ComputeAndCheck(*progress);
  });
  ASSERT_TRUE(Eventually([&] { return progress->steps > 1000 && progress->returns > 3; }));
  const auto process = ProcessHandle::Open(child.pid());
  ASSERT_TRUE(process.ok()) << process.status();
  const ProcessSnapshot before = TakeSnapshot(*process);

  for (int death = 0; death < kDeaths; ++death) {
    progress->started = 0;
    ChildProcess engine([&] {
      progress->started = 1;
      for (;;) {
        if (FreezeAndReadOut(*process).ok()) ++progress->readouts;
      }
    });
    while (progress->started == 0) ::sched_yield();
    ::usleep(static_cast<useconds_t>(delay_us(random)));
    engine.Kill();
    ASSERT_TRUE(child.Alive()) << "death " << death;
    const long steps = progress->steps;
    const long returns = progress->returns;
    ASSERT_TRUE(Eventually([&] {
      return progress->steps > steps + 100 && progress->returns > returns;
    })) << "death "
        << death;
    ASSERT_EQ(progress->wrong, 0) << "death " << death;
    ASSERT_TRUE(Eventually([&] { return TakeSnapshot(*process) == before; }))
        << "death " << death << "\n"
        << before.maps << TakeSnapshot(*process).maps;
  }
  printf("%d deaths, %ld whole readouts in between\n", kDeaths, progress->readouts.load());
  EXPECT_GT(progress->readouts, 0);
  // What a dead engine left in the padding is known as ours, and gone after a whole readout.
  ASSERT_TRUE(FreezeAndReadOut(*process).ok());
  EXPECT_TRUE(AllZero(ReadPadding(*process)));
}

}  // namespace
}  // namespace predump::kernel
