// Blocking calls go on after freezes and setups.
#include <errno.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <string>

#include "gtest/gtest.h"
#include "src/kernel/freezer.h"
#include "src/kernel/setup_injection.h"
#include "tests/kernel/child_process.h"
#include "tests/kernel/process_snapshot.h"

namespace predump::kernel {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(2);

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

}  // namespace
}  // namespace predump::kernel
