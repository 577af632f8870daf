#include "src/kernel/freezer.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/ptrace.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <optional>
#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/errors.h"
#include "src/kernel/setup_injection.h"
#include "tests/kernel/child_process.h"
#include "tests/kernel/process_snapshot.h"

namespace predump::kernel {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(2);

// ---- Interrupted calls.

int Socket(int domain, int type) { return ::socket(domain, type | SOCK_CLOEXEC, 0); }

void SetReceiveTimeout(int fd) {
  const struct timeval timeout = {30, 0};
  ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
}

int BoundSocket(int type) {
  const int fd = Socket(AF_INET, type);
  struct sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ::bind(fd, reinterpret_cast<struct sockaddr*>(&address), sizeof address);
  if (type == SOCK_STREAM) ::listen(fd, 1);
  return fd;
}

int PairEnd() {
  int ends[2];
  ::socketpair(AF_UNIX, SOCK_STREAM, 0, ends);
  return ends[0];
}

int PipeEnd() {
  int ends[2];
  return ::pipe(ends) == 0 ? ends[0] : -1;
}

void BlockUser2(sigset_t* set) {
  ::sigemptyset(set);
  ::sigaddset(set, SIGUSR2);
  ::sigprocmask(SIG_BLOCK, set, nullptr);
}

struct BlockingCall {
  const char* name;
  long (*run)();
};

const struct timespec kLong = {30, 0};
char g_byte;  // where calls under test would put what they never get

const BlockingCall kBlockingCalls[] = {
    {"epoll_wait with a timeout",
     [] {
       struct epoll_event event;
       return long{::epoll_wait(::epoll_create1(0), &event, 1, 30'000)};
     }},
    {"epoll_wait for ever",
     [] {
       struct epoll_event event;
       return long{::epoll_wait(::epoll_create1(0), &event, 1, -1)};
     }},
    {"epoll_pwait with a mask",
     [] {
       struct epoll_event event;
       sigset_t set;
       BlockUser2(&set);
       sigset_t none;
       ::sigemptyset(&none);
       return long{::epoll_pwait(::epoll_create1(0), &event, 1, 30'000, &none)};
     }},
    {"epoll_pwait2",
     [] {
       struct epoll_event event;
       return ::syscall(SYS_epoll_pwait2, ::epoll_create1(0), &event, 1, &kLong, nullptr, 8);
     }},
    {"poll", [] { return long{::poll(nullptr, 0, 30'000)}; }},
    {"ppoll with a mask",
     [] {
       sigset_t none;
       ::sigemptyset(&none);
       return long{::ppoll(nullptr, 0, &kLong, &none)};
     }},
    {"select",
     [] {
       struct timeval timeout = {30, 0};
       return long{::select(0, nullptr, nullptr, nullptr, &timeout)};
     }},
    {"nanosleep", [] { return long{::nanosleep(&kLong, nullptr)}; }},
    {"clock_nanosleep",
     [] { return long{-::clock_nanosleep(CLOCK_MONOTONIC, 0, &kLong, nullptr)}; }},
    {"futex with a timeout",
     [] {
       int word = 0;
       return ::syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &kLong, nullptr, 0);
     }},
    {"futex for ever",
     [] {
       int word = 0;
       return ::syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, nullptr, nullptr, 0);
     }},
    {"sigtimedwait",
     [] {
       sigset_t set;
       BlockUser2(&set);
       return long{::sigtimedwait(&set, nullptr, &kLong)};
     }},
    {"sigwaitinfo",
     [] {
       sigset_t set;
       BlockUser2(&set);
       return long{::sigwaitinfo(&set, nullptr)};
     }},
    {"sigsuspend",
     [] {
       sigset_t none;
       ::sigemptyset(&none);
       return long{::sigsuspend(&none)};
     }},
    {"pause", [] { return long{::pause()}; }},
    {"semtimedop",
     [] {
       const int id = ::semget(IPC_PRIVATE, 1, 0600 | IPC_CREAT);
       struct sembuf operation = {0, -1, 0};
       // The parent removes it: done here, the wait would end with EIDRM.
       ::dprintf(3, "%d\n", id);
       return long{::semtimedop(id, &operation, 1, &kLong)};
     }},
    {"recv", [] { return ::recv(PairEnd(), &g_byte, 1, 0); }},
    {"recv with SO_RCVTIMEO",
     [] {
       const int fd = PairEnd();
       SetReceiveTimeout(fd);
       return ::recv(fd, &g_byte, 1, 0);
     }},
    {"read of a socket with SO_RCVTIMEO",
     [] {
       const int fd = PairEnd();
       SetReceiveTimeout(fd);
       return ::read(fd, &g_byte, 1);
     }},
    {"recv of a datagram socket with SO_RCVTIMEO",
     [] {
       const int fd = BoundSocket(SOCK_DGRAM);
       SetReceiveTimeout(fd);
       return ::recv(fd, &g_byte, 1, 0);
     }},
    {"accept", [] { return long{::accept(BoundSocket(SOCK_STREAM), nullptr, nullptr)}; }},
    {"accept with SO_RCVTIMEO",
     [] {
       const int fd = BoundSocket(SOCK_STREAM);
       SetReceiveTimeout(fd);
       return long{::accept(fd, nullptr, nullptr)};
     }},
    {"read of a pipe", [] { return ::read(PipeEnd(), &g_byte, 1); }},
    {"read of an eventfd",
     [] {
       uint64_t count;
       return ::read(::eventfd(0, 0), &count, sizeof count);
     }},
    {"read of a timerfd",
     [] {
       uint64_t count;
       return ::read(::timerfd_create(CLOCK_MONOTONIC, 0), &count, sizeof count);
     }},
    {"read of an inotify",
     [] {
       char buffer[512];
       return ::read(::inotify_init(), buffer, sizeof buffer);
     }},
    {"read of a signalfd",
     [] {
       sigset_t set;
       BlockUser2(&set);
       char buffer[128];
       return ::read(::signalfd(-1, &set, 0), buffer, sizeof buffer);
     }},
    {"io_getevents",
     [] {
       aio_context_t context = 0;
       ::syscall(SYS_io_setup, 4, &context);
       struct io_event event;
       return ::syscall(SYS_io_getevents, context, 1, 1, &event, &kLong);
     }},
    {"wait",
     [] {
       if (::fork() == 0) {
         ::prctl(PR_SET_PDEATHSIG, SIGKILL);
         for (;;) ::pause();
       }
       return long{::wait(nullptr)};
     }},
};

struct CallOutcome {
  std::atomic<int> returned;
  std::atomic<long> result;
  std::atomic<int> error_number;
};

class InterruptedCallTest : public testing::TestWithParam<BlockingCall> {};

TEST_P(InterruptedCallTest, GoesOnAfterFreezesAndSetups) {
  SharedValue<CallOutcome> outcome;
  int semaphore_ids[2];
  ASSERT_EQ(::pipe(semaphore_ids), 0);
  ChildProcess child([&] {
    ::dup2(semaphore_ids[1], 3);
    errno = 0;
    outcome->result = GetParam().run();
    outcome->error_number = errno;
    outcome->returned = 1;
  });
  const auto process = ProcessHandle::Open(child.pid());
  ASSERT_TRUE(process.ok()) << process.status();
  ASSERT_TRUE(Eventually([&] {
    const auto state = ReadStat(*process);
    const auto call = ReadThreadSyscall(*process, child.pid());
    return state.ok() && state->state == 'S' && call.ok() && !call->running && call->number >= 0;
  }));
  SleepMs(2);
  const ProcessSnapshot before = TakeSnapshot(*process);
  for (int i = 0; i < 3; ++i) {
    auto frozen = FrozenProcess::Freeze(*process, kTimeout);
    ASSERT_TRUE(frozen.ok()) << frozen.status();
    ASSERT_TRUE(std::move(*frozen).Thaw().ok());
    SleepMs(1);
    ASSERT_EQ(outcome->returned, 0)
        << "after a freeze: " << outcome->result << " " << ::strerror(outcome->error_number);
    const auto setup = InjectSetup(*process, {});
    ASSERT_TRUE(setup.ok()) << setup.status();
    SleepMs(1);
    ASSERT_EQ(outcome->returned, 0)
        << "after a setup: " << outcome->result << " " << ::strerror(outcome->error_number);
  }
  // It sleeps again, in the same call.
  EXPECT_TRUE(Eventually([&] { return ReadStat(*process)->state == 'S'; }));
  EXPECT_EQ(TakeSnapshot(*process), before);
  ::close(semaphore_ids[1]);
  child.Kill();
  if (FILE* ids = ::fdopen(semaphore_ids[0], "r"); ids != nullptr) {
    int id = 0;
    if (std::string(GetParam().name) == "semtimedop" && ::fscanf(ids, "%d", &id) == 1) {
      ::semctl(id, 0, IPC_RMID);
    }
    ::fclose(ids);
  }
}

INSTANTIATE_TEST_SUITE_P(Calls, InterruptedCallTest, testing::ValuesIn(kBlockingCalls),
                         [](const auto& call_info) {
                           std::string name = call_info.param.name;
                           for (char& c : name) c = c == ' ' ? '_' : c;
                           return name;
                         });

// ---- Freezing.

TEST(FreezerTest, EpollWaitReportsEintrWhenASignalHandlerRan) {
  SharedValue<CallOutcome> outcome;
  ChildProcess child([&] {
    ::signal(SIGUSR1, [](int) {});
    struct epoll_event event;
    outcome->result = ::epoll_wait(::epoll_create1(0), &event, 1, 30'000);
    outcome->error_number = errno;
    outcome->returned = 1;
    for (;;) ::pause();
  });
  const auto process = ProcessHandle::Open(child.pid());
  ASSERT_TRUE(Eventually([&] {
    const auto call = ReadThreadSyscall(*process, child.pid());
    return call.ok() && (call->number == SYS_epoll_wait || call->number == SYS_epoll_pwait);
  }));
  auto frozen = FrozenProcess::Freeze(*process, kTimeout);
  ASSERT_TRUE(frozen.ok());
  ::kill(child.pid(), SIGUSR1);
  ASSERT_TRUE(std::move(*frozen).Thaw().ok());
  ASSERT_TRUE(Eventually([&] { return outcome->returned == 1; }));
  EXPECT_EQ(outcome->result, -1);
  EXPECT_EQ(outcome->error_number, EINTR);
}

struct Storm {
  std::atomic<long> made;
  std::atomic<int> stop;
};

TEST(FreezerTest, CatchesEveryThreadOfAStorm) {
  SharedValue<Storm> storm;
  ChildProcess child([&] {
    const auto breed = [&] {
      while (storm->stop == 0) {
        std::thread([&] { ++storm->made; }).join();
      }
    };
    std::thread others[3] = {std::thread(breed), std::thread(breed), std::thread(breed)};
    breed();
    for (std::thread& other : others) other.join();
  });
  const auto process = ProcessHandle::Open(child.pid());
  ASSERT_TRUE(Eventually([&] { return storm->made > 100; }));
  for (int i = 0; i < 100; ++i) {
    auto frozen = FrozenProcess::Freeze(*process, kTimeout);
    ASSERT_TRUE(frozen.ok()) << frozen.status();
    ASSERT_EQ(frozen->threads().front().tid(), child.pid());
    const long made = storm->made;
    const auto tids = ListThreads(*process);
    ASSERT_EQ(tids->size(), frozen->threads().size());
    if (i % 20 == 0) SleepMs(2);
    ASSERT_EQ(storm->made, made) << "a thread ran while frozen";
    ASSERT_TRUE(std::move(*frozen).Thaw().ok());
    ASSERT_TRUE(Eventually([&] { return storm->made > made; }));
  }
  storm->stop = 1;
  EXPECT_EQ(child.Reap(), 0);
}

TEST(FreezerTest, VforkParentIsNamedAndEverythingRunsOn) {
  SharedValue<Storm> storm;
  ChildProcess child([&] {
    std::thread counter([&] {
      while (storm->stop == 0) ++storm->made;
    });
    ::pthread_setname_np(::pthread_self(), "waiter");
    const pid_t vforked = ::vfork();
    if (vforked == 0) {
      while (*static_cast<volatile int*>(reinterpret_cast<int*>(&storm->stop)) == 0) {
        const struct timespec nap = {0, 1'000'000};
        ::nanosleep(&nap, nullptr);
      }
      ::_exit(0);
    }
    ::waitpid(vforked, nullptr, 0);
    counter.join();
  });
  const auto process = ProcessHandle::Open(child.pid());
  ASSERT_TRUE(Eventually([&] { return ReadStat(*process)->state == 'D'; }));
  const auto frozen = FrozenProcess::Freeze(*process, absl::Milliseconds(50));
  EXPECT_EQ(frozen.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(frozen.status().message()),
              testing::HasSubstr(absl::StrCat("thread ", child.pid(), " (waiter)")));
  EXPECT_EQ(ReadStatus(*process)->tracer_pid, 0);
  const long made = storm->made;
  EXPECT_TRUE(Eventually([&] { return storm->made > made; }));
  storm->stop = 1;
  EXPECT_EQ(child.Reap(), 0);
}

TEST(FreezerTest, StoppedProcessStaysStoppedAfterTheThaw) {
  ChildProcess child([] {
    for (;;) ::pause();
  });
  const auto process = ProcessHandle::Open(child.pid());
  ::kill(child.pid(), SIGSTOP);
  ASSERT_TRUE(Eventually([&] { return ReadStat(*process)->state == 'T'; }));
  auto frozen = FrozenProcess::Freeze(*process, kTimeout);
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  EXPECT_TRUE(frozen->was_stopped());
  ASSERT_TRUE(std::move(*frozen).Thaw().ok());
  ASSERT_TRUE(Eventually([&] { return ReadStat(*process)->state == 'T'; }));
  SleepMs(5);
  EXPECT_EQ(ReadStat(*process)->state, 'T');
  ::kill(child.pid(), SIGCONT);
  EXPECT_TRUE(Eventually([&] { return ReadStat(*process)->state == 'S'; }));
}

TEST(FreezerTest, TracedProcessIsRefusedNamingTheTracer) {
  SharedValue<Storm> storm;
  ChildProcess child([] {
    for (;;) ::pause();
  });
  ChildProcess tracer([&] {
    ::ptrace(PTRACE_SEIZE, child.pid(), nullptr, nullptr);
    storm->made = 1;
    for (;;) ::pause();
  });
  ASSERT_TRUE(Eventually([&] { return storm->made == 1; }));
  const auto process = ProcessHandle::Open(child.pid());
  const auto frozen = FrozenProcess::Freeze(*process, kTimeout);
  EXPECT_EQ(frozen.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(frozen.status().message()),
              testing::HasSubstr(absl::StrCat("traced by process ", tracer.pid())));
}

TEST(FreezerTest, ExitedProcessIsTargetExited) {
  ChildProcess child([] {
    for (;;) ::pause();
  });
  const auto process = ProcessHandle::Open(child.pid());
  child.Kill();
  EXPECT_TRUE(base::IsTargetExited(FrozenProcess::Freeze(*process, kTimeout).status()));
  EXPECT_TRUE(base::IsTargetExited(InjectSetup(*process, {}).status()));
}

// A thread's zombie that is left to its tracer would hide the end of the process from everybody.
TEST(FreezerTest, ProcessKilledWhileFrozenIsGoneAfterTheThaw) {
  for (const bool told : {true, false}) {
    ChildProcess child([] {
      for (int i = 0; i < 3; ++i) {
        std::thread([] {
          for (;;) ::pause();
        }).detach();
      }
      for (;;) ::pause();
    });
    const auto process = ProcessHandle::Open(child.pid());
    ASSERT_TRUE(Eventually([&] { return ListThreads(*process)->size() == 4; }));
    {
      auto frozen = FrozenProcess::Freeze(*process, kTimeout);
      ASSERT_TRUE(frozen.ok()) << frozen.status();
      ::kill(child.pid(), SIGKILL);
      if (told) {
        EXPECT_TRUE(base::IsTargetExited(std::move(*frozen).Thaw()));
      }
    }
    EXPECT_TRUE(*process->WaitForExit(absl::Seconds(5)));
  }
}

// ---- Signals.

constexpr int kSignals = 4000;

struct SignalCount {
  std::array<std::atomic<int>, kSignals> seen;
  std::atomic<int> total;
  std::atomic<int> wrong_sender;
  std::atomic<int> ready;
};
SignalCount* g_count;

TEST(FreezerTest, QueuedSignalsAreNeitherLostNorDoubled) {
  SharedValue<SignalCount> count;
  g_count = &*count;
  const pid_t sender = ::getpid();
  ChildProcess child([&] {
    struct sigaction action = {};
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    action.sa_sigaction = [](int, siginfo_t* info, void*) {
      ++g_count->seen[static_cast<size_t>(info->si_value.sival_int)];
      if (info->si_code != SI_QUEUE || info->si_uid != ::getuid()) ++g_count->wrong_sender;
      ++g_count->total;
    };
    ::sigaction(SIGRTMIN, &action, nullptr);
    std::thread other([] {
      for (;;) ::pause();
    });
    count->ready = 1;
    volatile unsigned long work = 0;
    for (;;) work = work + 1;
  });
  ASSERT_TRUE(Eventually([&] { return count->ready == 1; }));
  ASSERT_EQ(sender, ::getpid());
  const auto process = ProcessHandle::Open(child.pid());
  std::atomic<bool> done = false;
  std::thread queue([&] {
    for (int i = 0; i < kSignals; ++i) {
      union sigval value = {};
      value.sival_int = i;
      while (::sigqueue(child.pid(), SIGRTMIN, value) != 0) ::usleep(100);
      if (i % 8 == 0) ::usleep(50);
    }
    done = true;
  });
  int freezes = 0;
  while (!done) {
    auto frozen = FrozenProcess::Freeze(*process, kTimeout);
    EXPECT_TRUE(frozen.ok()) << frozen.status();
    if (frozen.ok()) {
      EXPECT_TRUE(std::move(*frozen).Thaw().ok());
    }
    const auto setup = InjectSetup(*process, {.helper = freezes % 4 == 0});
    EXPECT_TRUE(setup.ok()) << setup.status();
    ++freezes;
  }
  queue.join();
  EXPECT_TRUE(Eventually([&] { return count->total >= kSignals; })) << count->total;
  SleepMs(5);
  EXPECT_EQ(count->total, kSignals);
  EXPECT_EQ(count->wrong_sender, 0);
  for (int i = 0; i < kSignals; ++i) ASSERT_EQ(count->seen[static_cast<size_t>(i)], 1) << i;
  printf("%d freezes and setups during %d signals\n", freezes, kSignals);
}

// ---- Parking.

struct Parked {
  std::atomic<long> steps[4];
  std::atomic<int> continued;
  std::atomic<int> ready;
};
Parked* g_parked;

long Steps(Parked& parked) {
  long sum = 0;
  for (const auto& steps : parked.steps) sum += steps;
  return sum;
}

void CountInFourThreads(Parked& parked) {
  g_parked = &parked;
  ::signal(SIGCONT, [](int) { ++g_parked->continued; });
  const auto count = [&](int i) {
    for (;;) ++parked.steps[i];
  };
  for (int i = 1; i < 4; ++i) std::thread(count, i).detach();
  parked.ready = 1;
  count(0);
}

bool AllFourMove(Parked& parked) {
  for (auto& steps : parked.steps) {
    const long before = steps;
    if (!Eventually([&] { return steps > before; })) return false;
  }
  return true;
}

TEST(FreezerTest, SwallowedStopLeavesNothing) {
  SharedValue<Parked> parked;
  ChildProcess child([&] { CountInFourThreads(*parked); });
  ASSERT_TRUE(Eventually([&] { return parked->ready == 1; }));
  ASSERT_TRUE(AllFourMove(*parked));
  const auto process = ProcessHandle::Open(child.pid());
  for (int i = 0; i < 20; ++i) {
    auto frozen = FrozenProcess::Freeze(*process, kTimeout);
    ASSERT_TRUE(frozen.ok()) << frozen.status();
    ASSERT_TRUE(frozen->QueueStop().ok());
    const long steps = Steps(*parked);
    ASSERT_TRUE(std::move(*frozen).SwallowStopAndThaw().ok());
    ASSERT_TRUE(Eventually([&] { return Steps(*parked) > steps; }));
  }
  EXPECT_TRUE(AllFourMove(*parked));
  EXPECT_EQ(ReadStatus(*process)->pending_process, 0u);
  EXPECT_EQ(parked->continued, 0);
  EXPECT_EQ(::waitpid(child.pid(), nullptr, WUNTRACED | WNOHANG), 0) << "its parent saw a stop";
}

TEST(FreezerTest, ParkedProcessOutlivesItsEngineAndIsResumedUnseen) {
  SharedValue<Parked> parked;
  ChildProcess child([&] { CountInFourThreads(*parked); });
  ASSERT_TRUE(Eventually([&] { return parked->ready == 1; }));
  ASSERT_TRUE(AllFourMove(*parked));
  const auto process = ProcessHandle::Open(child.pid());
  for (int i = 0; i < 10; ++i) {
    SharedValue<Storm> frozen_flag;
    ChildProcess engine([&] {
      auto frozen = FrozenProcess::Freeze(*process, kTimeout);
      if (!frozen.ok() || !frozen->QueueStop().ok()) ::_exit(1);
      frozen_flag->made = 1;
      for (;;) ::pause();
    });
    ASSERT_TRUE(Eventually([&] { return frozen_flag->made == 1; }));
    const long steps = Steps(*parked);
    engine.Kill();
    ASSERT_TRUE(Eventually([&] { return ReadStat(*process)->state == 'T'; }));
    SleepMs(5);
    ASSERT_EQ(Steps(*parked), steps) << "a user instruction ran";
    const absl::Status resumed = FrozenProcess::UnparkAndResume(*process, kTimeout);
    ASSERT_TRUE(resumed.ok()) << resumed;
    ASSERT_TRUE(AllFourMove(*parked));
  }
  EXPECT_EQ(parked->continued, 0) << "the application's handler saw SIGCONT";
  EXPECT_EQ(FrozenProcess::UnparkAndResume(*process, kTimeout).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(AllFourMove(*parked));
}

// What `predump resolve` meets right after an engine died: the process is still on its way to the
// stop that is queued for it.
TEST(FreezerTest, ProcessOnItsWayToTheStopIsResumedAtOnceAfterItsEngineDied) {
  SharedValue<Parked> parked;
  ChildProcess child([&] { CountInFourThreads(*parked); });
  ASSERT_TRUE(Eventually([&] { return parked->ready == 1; }));
  ASSERT_TRUE(AllFourMove(*parked));
  const auto process = ProcessHandle::Open(child.pid());
  for (int i = 0; i < 200; ++i) {
    SharedValue<Storm> frozen_flag;
    ChildProcess engine([&] {
      auto frozen = FrozenProcess::Freeze(*process, kTimeout);
      if (!frozen.ok() || !frozen->QueueStop().ok()) ::_exit(1);
      frozen_flag->made = 1;
      for (;;) ::pause();
    });
    ASSERT_TRUE(Eventually([&] { return frozen_flag->made == 1; }));
    if (i % 2 == 0) {
      engine.Kill();
    } else {
      ::kill(engine.pid(), SIGKILL);  // not even its death is waited for
    }
    const absl::Status resumed = FrozenProcess::UnparkAndResume(*process, kTimeout);
    ASSERT_TRUE(resumed.ok()) << i << ": " << resumed;
    const long steps = Steps(*parked);
    ASSERT_TRUE(Eventually([&] { return Steps(*parked) > steps; })) << i;
  }
  ASSERT_TRUE(AllFourMove(*parked));
  EXPECT_EQ(parked->continued, 0) << "the application's handler saw SIGCONT";
}

TEST(FreezerTest, ProcessOnItsWayToTheStopIsKilledAtOnceAfterItsEngineDied) {
  for (int i = 0; i < 50; ++i) {
    SharedValue<Parked> parked;
    ChildProcess child([&] { CountInFourThreads(*parked); });
    ASSERT_TRUE(Eventually([&] { return parked->ready == 1; }));
    const auto process = ProcessHandle::Open(child.pid());
    SharedValue<Storm> frozen_flag;
    ChildProcess engine([&] {
      auto frozen = FrozenProcess::Freeze(*process, kTimeout);
      if (!frozen.ok() || !frozen->QueueStop().ok()) ::_exit(1);
      frozen_flag->made = 1;
      for (;;) ::pause();
    });
    ASSERT_TRUE(Eventually([&] { return frozen_flag->made == 1; }));
    ::kill(engine.pid(), SIGKILL);
    const absl::Status killed = FrozenProcess::KillParked(*process, kTimeout);
    ASSERT_TRUE(killed.ok()) << i << ": " << killed;
    EXPECT_TRUE(*process->HasExited());
  }
}

TEST(FreezerTest, TracedProcessIsNotTakenForOneThatGoesOn) {
  SharedValue<Storm> storm;
  ChildProcess child([] {
    for (;;) ::pause();
  });
  ChildProcess tracer([&] {
    ::ptrace(PTRACE_SEIZE, child.pid(), nullptr, nullptr);
    storm->made = 1;
    for (;;) ::pause();
  });
  ASSERT_TRUE(Eventually([&] { return storm->made == 1; }));
  const auto process = ProcessHandle::Open(child.pid());
  EXPECT_EQ(FrozenProcess::UnparkAndResume(*process, absl::Milliseconds(50)).code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(FrozenProcess::KillParked(*process, absl::Milliseconds(50)).code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST(FreezerTest, KillParkedKillsOnlyWhatIsParked) {
  SharedValue<Parked> parked;
  ChildProcess child([&] { CountInFourThreads(*parked); });
  ASSERT_TRUE(Eventually([&] { return parked->ready == 1; }));
  const auto process = ProcessHandle::Open(child.pid());
  EXPECT_EQ(FrozenProcess::KillParked(*process, kTimeout).code(),
            absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(AllFourMove(*parked));
  ::kill(child.pid(), SIGSTOP);
  ASSERT_TRUE(Eventually([&] { return ReadStat(*process)->state == 'T'; }));
  const absl::Status killed = FrozenProcess::KillParked(*process, kTimeout);
  EXPECT_TRUE(killed.ok()) << killed;
  EXPECT_TRUE(*process->HasExited());
}

TEST(FreezerTest, CpuFollowerPutsTheAffinityBack) {
  ChildProcess child([] {
    for (;;) ::pause();
  });
  const auto process = ProcessHandle::Open(child.pid());
  cpu_set_t before;
  cpu_set_t after;
  ::pthread_getaffinity_np(::pthread_self(), sizeof before, &before);
  {
    const CpuFollower follower(*process);
    EXPECT_TRUE(follower.moved());
    EXPECT_EQ(::sched_getcpu(), ReadStat(*process)->last_cpu);
  }
  ::pthread_getaffinity_np(::pthread_self(), sizeof after, &after);
  EXPECT_TRUE(CPU_EQUAL(&before, &after));
}

}  // namespace
}  // namespace predump::kernel
