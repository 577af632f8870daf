// Each kind of open file that moves: a child sets one up, the captured message is compared.
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/net_tstamp.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/clock.h"
#include "src/images/image_constants.h"
#include "src/images/state_validation.h"
#include "tests/checkpoint/forked_process.h"
#include "tests/support/temp_dir.h"

namespace predump::checkpoint {
namespace {

using ::predump::checkpoint::testing::CaptureOnce;
using ::predump::checkpoint::testing::ExtraOf;
using ::predump::checkpoint::testing::FileOf;
using ::predump::checkpoint::testing::ForkedProcess;
using ::predump::checkpoint::testing::Require;
using ::testing::ElementsAre;

constexpr int kPassPidfd = 76;  // SO_PASSPIDFD, Linux 6.5

// Captures and checks that a peer would accept the result.
proto::ProcessState Captured(const ForkedProcess& process, const CaptureOptions& options = {}) {
  auto state = CaptureOnce(process.handle(), options);
  EXPECT_TRUE(state.ok()) << state.status();
  if (!state.ok()) return {};
  const absl::Status valid = images::ValidateState(*state, images::StateKind::kFull);
  EXPECT_TRUE(valid.ok()) << valid;
  return *std::move(state);
}

// Moves a descriptor to a number the test knows.
void Place(int fd, int number) {
  Require(fd >= 0, "make a descriptor");
  if (fd == number) return;
  Require(::dup2(fd, number) == number, "dup2");
  ::close(fd);
}

TEST(CaptureFiles, RegularFileKeepsOffsetAndFlags) {
  const auto directory = test_support::TempDir::Create();
  ASSERT_TRUE(directory.ok());
  const std::string path = directory->File("data");
  const ForkedProcess child([&] {
    Place(::open(path.c_str(), O_RDWR | O_CREAT | O_NONBLOCK, 0640), 10);
    Require(::write(10, "0123456789", 10) == 10, "write");
    Require(::lseek(10, 4, SEEK_SET) == 4, "lseek");
    ::fcntl(10, F_SETFD, FD_CLOEXEC);
  });
  const auto state = Captured(child);
  const auto& file = FileOf(state, 10).reg();
  EXPECT_EQ(file.name(), path);
  EXPECT_EQ(file.pos(), 4u);
  EXPECT_EQ(file.size(), 10u);
  EXPECT_EQ(file.flags() & (O_ACCMODE | O_NONBLOCK), static_cast<uint32_t>(O_RDWR | O_NONBLOCK));
  EXPECT_EQ(file.mode(), S_IFREG | 0640u);
  for (const auto& entry : state.descriptors()) {
    EXPECT_EQ(entry.flags(), entry.fd() == 10 ? 1u : 0u) << entry.fd();
  }
}

TEST(CaptureFiles, SizeOfALogFileIsNotCompared) {
  const auto directory = test_support::TempDir::Create();
  ASSERT_TRUE(directory.ok());
  const std::string path = directory->File("log");
  const ForkedProcess child(
      [&] { Place(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644), 10); });
  const auto state = Captured(child);
  EXPECT_FALSE(FileOf(state, 10).reg().has_size());
  EXPECT_NE(FileOf(state, 10).reg().flags() & O_APPEND, 0u);
}

TEST(CaptureFiles, DuplicatesShareOneFileAndSecondOpensDoNot) {
  const auto directory = test_support::TempDir::Create();
  ASSERT_TRUE(directory.ok());
  const std::string path = directory->File("log");
  const ForkedProcess child([&] {
    Place(::open(path.c_str(), O_WRONLY | O_CREAT, 0644), 11);
    ::dup2(11, 12);  // 2>&1
    Place(::open(path.c_str(), O_WRONLY), 13);
    ::dup2(13, 10);
  });
  const auto state = Captured(child);
  EXPECT_EQ(FileOf(state, 11).id(), FileOf(state, 12).id());
  EXPECT_EQ(FileOf(state, 13).id(), FileOf(state, 10).id());
  EXPECT_NE(FileOf(state, 11).id(), FileOf(state, 13).id());
}

TEST(CaptureFiles, EventFdsOfOneInodeAreToldApart) {
  const ForkedProcess child([] {
    for (int i = 0; i < 8; ++i) Place(::eventfd(static_cast<unsigned>(i), 0), 40 + i);
    ::dup2(43, 50);
  });
  const auto state = Captured(child);
  for (uint32_t i = 0; i < 8; ++i) EXPECT_EQ(FileOf(state, 40 + i).efd().counter(), i);
  EXPECT_EQ(FileOf(state, 50).id(), FileOf(state, 43).id());
}

TEST(CaptureFiles, DirectoriesAndDevices) {
  const ForkedProcess child([] {
    Place(::open("/etc", O_RDONLY | O_DIRECTORY), 10);
    Place(::open("/dev/zero", O_RDONLY), 11);
    Place(::open("/dev/full", O_WRONLY), 12);
    Place(::open("/dev/random", O_RDONLY), 13);
    Place(::open("/dev/urandom", O_RDONLY), 14);
  });
  const auto state = Captured(child);
  EXPECT_EQ(FileOf(state, 10).reg().name(), "/etc");
  EXPECT_NE(FileOf(state, 10).reg().flags() & O_DIRECTORY, 0u);
  EXPECT_EQ(FileOf(state, 11).reg().name(), "/dev/zero");
  EXPECT_EQ(FileOf(state, 12).reg().name(), "/dev/full");
  EXPECT_EQ(FileOf(state, 13).reg().name(), "/dev/random");
  EXPECT_EQ(FileOf(state, 14).reg().name(), "/dev/urandom");
  EXPECT_EQ(FileOf(state, 0).reg().name(), "/dev/null");
  EXPECT_EQ(FileOf(state, 0).id(), FileOf(state, 1).id());
}

TEST(CaptureFiles, PipeContentsAreCopiedAndStay) {
  const ForkedProcess child([] {
    int ends[2];
    Require(::pipe2(ends, O_NONBLOCK) == 0, "pipe2");
    Place(ends[0], 20);
    Place(ends[1], 21);
    Require(::fcntl(21, F_SETPIPE_SZ, 131072) > 0, "F_SETPIPE_SZ");
    const std::string data(100000, 'x');
    Require(::write(21, data.data(), data.size()) == 100000, "write");
    Require(::write(21, "end", 3) == 3, "write");
  });
  for (int round = 0; round < 2; ++round) {
    const auto state = Captured(child);
    ASSERT_EQ(state.pipes_size(), 1);
    EXPECT_EQ(state.pipes(0).data(), std::string(100000, 'x') + "end") << "round " << round;
    EXPECT_EQ(state.pipes(0).entry().size(), 131072u);
    EXPECT_EQ(FileOf(state, 20).pipe().pipe_id(), FileOf(state, 21).pipe().pipe_id());
    EXPECT_EQ(FileOf(state, 20).pipe().flags() & O_ACCMODE, static_cast<uint32_t>(O_RDONLY));
    EXPECT_EQ(FileOf(state, 21).pipe().flags() & O_ACCMODE, static_cast<uint32_t>(O_WRONLY));
    EXPECT_NE(FileOf(state, 20).pipe().flags() & O_NONBLOCK, 0u);
  }
}

TEST(CaptureFiles, PacketPipesKeepTheirPackets) {
  const ForkedProcess child([] {
    int ends[2];
    Require(::pipe2(ends, O_DIRECT) == 0, "pipe2");
    Place(ends[0], 20);
    Place(ends[1], 21);
    Require(::write(21, "one", 3) == 3 && ::write(21, "three", 5) == 5, "write");
  });
  const auto state = Captured(child);
  ASSERT_EQ(state.pipes_size(), 1);
  EXPECT_EQ(state.pipes(0).data(), "onethree");
  EXPECT_THAT(state.pipes(0).packet_bytes(), ElementsAre(3u, 5u));
}

TEST(CaptureFiles, EventFdTimerFdSignalFd) {
  const ForkedProcess child([] {
    Place(::eventfd(300, EFD_SEMAPHORE | EFD_NONBLOCK), 30);
    Place(::timerfd_create(CLOCK_MONOTONIC, 0), 31);
    struct itimerspec timer = {.it_interval = {7, 8}, .it_value = {1000, 0}};
    Require(::timerfd_settime(31, 0, &timer, nullptr) == 0, "timerfd_settime");
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR1);
    sigaddset(&mask, SIGTERM);
    Place(::signalfd(-1, &mask, 0), 32);
  });
  const auto state = Captured(child);
  EXPECT_EQ(FileOf(state, 30).efd().counter(), 300u);
  ASSERT_NE(ExtraOf(state, 30), nullptr);
  EXPECT_TRUE(ExtraOf(state, 30)->eventfd_semaphore());
  const auto& timer = FileOf(state, 31).tfd();
  EXPECT_EQ(timer.clockid(), static_cast<uint32_t>(CLOCK_MONOTONIC));
  EXPECT_EQ(timer.isec(), 7u);
  EXPECT_EQ(timer.insec(), 8u);
  EXPECT_GE(timer.vsec(), 990u);
  EXPECT_LT(timer.vsec(), 1000u);
  EXPECT_EQ(FileOf(state, 32).sgfd().signal_mask(),
            uint64_t{1} << (SIGUSR1 - 1) | uint64_t{1} << (SIGTERM - 1));
}

// What is left of a timer counts from the freeze stamp, whenever it was read: never less than that,
// or it would go off early at the target.
TEST(CaptureFiles, TimeLeftOfATimerCountsFromTheFreezeStamp) {
  const ForkedProcess child([] {
    for (int fd = 30; fd < 60; ++fd) Place(::timerfd_create(CLOCK_MONOTONIC, 0), fd);
    const struct itimerspec timer = {.it_interval = {}, .it_value = {1000, 0}};
    Require(::timerfd_settime(59, 0, &timer, nullptr) == 0, "timerfd_settime");
  });
  const auto duplicate = child.handle().GetDescriptor(59);
  ASSERT_TRUE(duplicate.ok()) << duplicate.status();
  int64_t deadline = INT64_MAX;
  for (int i = 0; i < 100; ++i) {  // the nearest: nothing came between the two clocks
    struct itimerspec left = {};
    ASSERT_EQ(::timerfd_gettime(duplicate->get(), &left), 0);
    deadline = std::min(deadline, base::MonotonicNanoseconds() +
                                      left.it_value.tv_sec * 1'000'000'000 + left.it_value.tv_nsec);
  }
  for (int i = 0; i < 10; ++i) {
    const auto state = Captured(child);
    const auto& timer = FileOf(state, 59).tfd();
    const int64_t told = state.extra().freeze_monotonic_ns() +
                         static_cast<int64_t>(timer.vsec() * 1'000'000'000 + timer.vnsec());
    EXPECT_GE(told, deadline - 20'000);
    EXPECT_LE(told, deadline + 20'000'000);
  }
}

TEST(CaptureFiles, APeriodicTimerThatNobodyReadsKeepsItsPhaseAndTicks) {
  const ForkedProcess child([] {
    Place(::timerfd_create(CLOCK_MONOTONIC, 0), 30);
    const struct itimerspec timer = {.it_interval = {0, 100'000'000}, .it_value = {0, 1'000'000}};
    Require(::timerfd_settime(30, 0, &timer, nullptr) == 0, "timerfd_settime");
    struct pollfd due = {30, POLLIN, 0};
    Require(::poll(&due, 1, 10'000) == 1, "poll");
  });
  for (int i = 0; i < 3; ++i) {
    const auto state = Captured(child);
    const auto& timer = FileOf(state, 30).tfd();
    EXPECT_EQ(timer.insec(), 100'000'000u);
    EXPECT_GE(timer.ticks(), 1u);
    EXPECT_GT(timer.vnsec(), 0u);
    EXPECT_EQ(timer.vsec(), 0u);
  }
}

TEST(CaptureFiles, AnAbsoluteTimerKeepsItsDate) {
  constexpr time_t kDate = 4'000'000'000;  // in the year 2096
  const ForkedProcess child([] {
    Place(::timerfd_create(CLOCK_REALTIME, 0), 30);
    const struct itimerspec timer = {.it_interval = {}, .it_value = {kDate, 5}};
    Require(
        ::timerfd_settime(30, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &timer, nullptr) == 0,
        "timerfd_settime");
  });
  const auto state = Captured(child);
  const auto& timer = FileOf(state, 30).tfd();
  EXPECT_EQ(timer.settime_flags(), TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET);
  ASSERT_NE(ExtraOf(state, 30), nullptr);
  const int64_t date = ExtraOf(state, 30)->timerfd_clock_ns() +
                       static_cast<int64_t>(timer.vsec() * 1'000'000'000 + timer.vnsec());
  EXPECT_NEAR(static_cast<double>(date - kDate * 1'000'000'000), 0, 10'000'000);
}

TEST(CaptureFiles, EpollKeepsEventsAndData) {
  const ForkedProcess child([] {
    Place(::epoll_create1(0), 30);
    Place(::eventfd(0, 0), 31);
    Place(::eventfd(1, 0), 32);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data = {.u64 = 0x123456789abcdef0}};
    Require(::epoll_ctl(30, EPOLL_CTL_ADD, 31, &event) == 0, "epoll_ctl");
    event = {.events = EPOLLIN | EPOLLONESHOT, .data = {.u64 = 5}};
    Require(::epoll_ctl(30, EPOLL_CTL_ADD, 32, &event) == 0, "epoll_ctl");
    Require(::epoll_wait(30, &event, 1, 0) == 1, "epoll_wait");  // disables the one-shot entry
  });
  const auto state = Captured(child);
  const auto& epoll = FileOf(state, 30).epfd();
  ASSERT_EQ(epoll.tfd_size(), 2);
  for (const auto& entry : epoll.tfd()) {
    if (entry.tfd() == 31) {
      EXPECT_EQ(entry.data(), 0x123456789abcdef0u);
      EXPECT_EQ(entry.events() & (EPOLLIN | EPOLLET), static_cast<uint32_t>(EPOLLIN | EPOLLET));
    } else {
      EXPECT_EQ(entry.tfd(), 32u);
      EXPECT_EQ(entry.events() & EPOLLIN, 0u);
      EXPECT_NE(entry.events() & EPOLLONESHOT, 0u);
    }
  }
}

TEST(CaptureFiles, StreamSocketPairWithQueue) {
  const ForkedProcess child([] {
    int pair[2];
    Require(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
    Place(pair[0], 20);
    Place(pair[1], 21);
    for (int i = 0; i < 100; ++i) Require(::write(20, "hello", 5) == 5, "write");
    Require(::write(21, "back", 4) == 4, "write");
  });
  for (int round = 0; round < 2; ++round) {
    const auto state = Captured(child);
    const auto& a = FileOf(state, 20).usk();
    const auto& b = FileOf(state, 21).usk();
    EXPECT_EQ(a.peer(), b.ino());
    EXPECT_EQ(b.peer(), a.ino());
    ASSERT_EQ(state.packets_size(), 2);
    for (const auto& packet : state.packets()) {
      if (packet.entry().id_for() == a.id()) {
        EXPECT_EQ(packet.data(), "back");
      } else {
        EXPECT_EQ(packet.data().size(), 500u);
      }
    }
  }
}

TEST(CaptureFiles, DatagramSocketPairKeepsBoundaries) {
  const ForkedProcess child([] {
    int pair[2];
    Require(::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0, "socketpair");
    Place(pair[0], 20);
    Place(pair[1], 21);
    Require(::write(20, "one", 3) == 3 && ::write(20, "three", 5) == 5, "write");
  });
  for (int round = 0; round < 2; ++round) {
    const auto state = Captured(child);
    ASSERT_EQ(state.packets_size(), 2) << "round " << round;
    EXPECT_EQ(state.packets(0).data(), "one");
    EXPECT_EQ(state.packets(1).data(), "three");
    EXPECT_EQ(state.packets(0).entry().id_for(), FileOf(state, 21).id());
  }
}

TEST(CaptureFiles, ListeningTcpWithOptions) {
  const ForkedProcess child([] {
    Place(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), 20);
    const int one = 1;
    const int seconds = 5;
    ::setsockopt(20, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    ::setsockopt(20, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    ::setsockopt(20, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    ::setsockopt(20, IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof seconds);
    struct linger linger = {.l_onoff = 1, .l_linger = 3};
    ::setsockopt(20, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = ::inet_addr("127.0.0.1");
    Require(::bind(20, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "bind");
    Require(::listen(20, 77) == 0, "listen");
  });
  const auto state = Captured(child);
  const auto& socket = FileOf(state, 20).isk();
  EXPECT_EQ(socket.state(), images::kSocketListening);
  EXPECT_EQ(socket.backlog(), 77u);
  EXPECT_NE(socket.src_port(), 0u);
  EXPECT_THAT(socket.src_addr(), ElementsAre(::inet_addr("127.0.0.1")));
  EXPECT_TRUE(socket.opts().reuseaddr());
  EXPECT_TRUE(socket.opts().so_keepalive());
  EXPECT_EQ(socket.opts().so_linger(), 3u);
  EXPECT_TRUE(socket.tcp_opts().nodelay());
  bool deferred = false;
  for (const auto& option : ExtraOf(state, 20)->socket_options()) {
    if (option.level() == IPPROTO_TCP && option.name() == TCP_DEFER_ACCEPT) deferred = true;
  }
  EXPECT_TRUE(deferred);
}

TEST(CaptureFiles, SixListeningAndUdp) {
  const ForkedProcess child([] {
    Place(::socket(AF_INET6, SOCK_STREAM, 0), 20);
    const int one = 1;
    ::setsockopt(20, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
    Require(::listen(20, 5) == 0, "listen");
    Place(::socket(AF_INET, SOCK_DGRAM, 0), 21);
    ::setsockopt(21, SOL_SOCKET, SO_BROADCAST, &one, sizeof one);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = ::inet_addr("127.0.0.1");
    address.sin_port = htons(9);
    Require(::connect(21, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "connect");
  });
  const auto state = Captured(child);
  EXPECT_TRUE(FileOf(state, 20).isk().v6only());
  EXPECT_EQ(FileOf(state, 20).isk().src_addr_size(), 4);
  EXPECT_EQ(FileOf(state, 21).isk().state(), images::kSocketEstablished);
  EXPECT_EQ(FileOf(state, 21).isk().dst_port(), 9u);
  EXPECT_TRUE(FileOf(state, 21).isk().opts().so_broadcast());
}

TEST(CaptureFiles, ListeningUnixSocket) {
  const auto directory = test_support::TempDir::Create();
  ASSERT_TRUE(directory.ok());
  const std::string path = directory->File("socket");
  const ForkedProcess child([&] {
    Place(::socket(AF_UNIX, SOCK_STREAM, 0), 20);
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
    Require(::bind(20, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "bind");
    Require(::chmod(path.c_str(), 0600) == 0, "chmod");
    Require(::listen(20, 13) == 0, "listen");
  });
  const auto state = Captured(child);
  const auto& socket = FileOf(state, 20).usk();
  EXPECT_EQ(socket.state(), images::kSocketListening);
  EXPECT_EQ(socket.backlog(), 13u);
  EXPECT_EQ(std::string(socket.name().c_str()), path);
  EXPECT_EQ(socket.file_perms().mode(), 0600u);
}

TEST(CaptureFiles, EstablishedTcpBecomesClosedOnRequest) {
  const ForkedProcess child([] {
    Place(::socket(AF_INET, SOCK_STREAM, 0), 20);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = ::inet_addr("127.0.0.1");
    Require(::bind(20, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "bind");
    Require(::listen(20, 5) == 0, "listen");
    socklen_t length = sizeof address;
    ::getsockname(20, reinterpret_cast<sockaddr*>(&address), &length);
    Place(::socket(AF_INET, SOCK_STREAM, 0), 21);
    Require(::connect(21, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "connect");
    Place(::accept(20, nullptr, nullptr), 22);
  });
  EXPECT_THAT(CaptureOnce(child.handle()).status().message(),
              ::testing::HasSubstr("fd 21: an established TCP connection"));
  const auto state = Captured(child, {.tcp_close = true});
  EXPECT_TRUE(ExtraOf(state, 21)->tcp_closed());
  EXPECT_TRUE(ExtraOf(state, 22)->tcp_closed());
  EXPECT_FALSE(ExtraOf(state, 20)->tcp_closed());
  EXPECT_EQ(FileOf(state, 21).isk().state(), images::kSocketClosed);
}

// Each in the list of what CRIU's messages have no field for.
TEST(CaptureFiles, OptionsOfAllKindsOfSockets) {
  const ForkedProcess child([] {
    const auto set = [](int fd, int level, int name, int value) {
      Require(::setsockopt(fd, level, name, &value, sizeof value) == 0, "setsockopt");
    };
    Place(::socket(AF_INET, SOCK_STREAM, 0), 20);
    set(20, IPPROTO_TCP, TCP_MAXSEG, 1000);
    set(20, IPPROTO_IP, IP_RECVTOS, 1);
    Require(::listen(20, 1) == 0, "listen");
    set(20, SOL_SOCKET, SO_INCOMING_CPU, 1);
    Place(::socket(AF_INET6, SOCK_DGRAM, 0), 21);
    set(21, IPPROTO_IPV6, IPV6_RECVPATHMTU, 1);
    set(21, SOL_SOCKET, SO_TIMESTAMPING_NEW, SOF_TIMESTAMPING_RX_SOFTWARE);
    Place(::socket(AF_UNIX, SOCK_DGRAM, 0), 22);
    set(22, SOL_SOCKET, kPassPidfd, 1);
  });
  const auto state = Captured(child);
  const auto options = [&](uint32_t fd) {
    std::vector<std::pair<int, int>> found;
    for (const auto& option : ExtraOf(state, fd)->socket_options()) {
      found.emplace_back(option.level(), option.name());
    }
    return found;
  };
  using ::testing::UnorderedElementsAre;
  EXPECT_THAT(options(20), UnorderedElementsAre(std::pair(IPPROTO_TCP, TCP_MAXSEG),
                                                std::pair(IPPROTO_IP, IP_RECVTOS),
                                                std::pair(SOL_SOCKET, SO_INCOMING_CPU)));
  EXPECT_THAT(options(21), UnorderedElementsAre(std::pair(IPPROTO_IPV6, IPV6_RECVPATHMTU),
                                                std::pair(SOL_SOCKET, SO_TIMESTAMPING_OLD),
                                                std::pair(SOL_SOCKET, SO_TIMESTAMPING_NEW)));
  EXPECT_THAT(options(22), UnorderedElementsAre(std::pair(SOL_SOCKET, kPassPidfd)));
}

TEST(CaptureFiles, ResetTcpIsClosedOnRequestAndNoNewSocket) {
  const ForkedProcess child([] {
    Place(::socket(AF_INET, SOCK_STREAM, 0), 20);  // new, and stays so
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = ::inet_addr("127.0.0.1");
    Place(::socket(AF_INET, SOCK_STREAM, 0), 22);
    Require(::bind(22, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "bind");
    Require(::listen(22, 5) == 0, "listen");
    socklen_t length = sizeof address;
    ::getsockname(22, reinterpret_cast<sockaddr*>(&address), &length);
    Place(::socket(AF_INET, SOCK_STREAM, 0), 21);
    Require(::connect(21, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "connect");
    ::close(22);  // resets what waits in it
  });
  const auto state = Captured(child, {.tcp_close = true});
  EXPECT_TRUE(ExtraOf(state, 21)->tcp_closed());
  EXPECT_FALSE(ExtraOf(state, 20)->tcp_closed());
}

}  // namespace
}  // namespace predump::checkpoint
