// Every kind of thing that does not move, with the words a person reads.
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/netlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/checkpoint/forked_process.h"
#include "tests/support/temp_dir.h"

namespace predump::checkpoint {
namespace {

using ::predump::checkpoint::testing::BlockersOf;
using ::predump::checkpoint::testing::ForkedProcess;
using ::predump::checkpoint::testing::ForkHolder;
using ::predump::checkpoint::testing::Require;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

void Place(int fd, int number) {
  Require(fd >= 0, "make a descriptor");
  if (fd == number) return;
  Require(::dup2(fd, number) == number, "dup2");
  ::close(fd);
}

// 12 listens at `name`, 11 is connected to it, 10 is the other end.
void ConnectToSelf(const std::string& name) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::copy(name.begin(), name.end(), address.sun_path);
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  Place(::socket(AF_UNIX, SOCK_STREAM, 0), 12);
  Require(::bind(12, generic, length) == 0 && ::listen(12, 1) == 0, "listen");
  Place(::socket(AF_UNIX, SOCK_STREAM, 0), 11);
  Require(::connect(11, generic, length) == 0, "connect");
  Place(::accept(12, nullptr, nullptr), 10);
}

struct Case {
  const char* name;
  void (*set_up)();
  const char* blocker;
};

class Refused : public ::testing::TestWithParam<Case> {};

TEST_P(Refused, ByName) {
  const ForkedProcess child(GetParam().set_up);
  const auto blockers = BlockersOf(child.handle());
  ASSERT_TRUE(blockers.ok()) << blockers.status();
  EXPECT_THAT(*blockers, Contains(HasSubstr(GetParam().blocker)));
}

TEST(NothingRefused, OfAPlainProcess) {
  const ForkedProcess child([] {});
  const auto blockers = BlockersOf(child.handle());
  ASSERT_TRUE(blockers.ok()) << blockers.status();
  EXPECT_THAT(*blockers, IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(
    Descriptors, Refused,
    ::testing::Values(
        Case{"Inotify", [] { Place(::inotify_init(), 10); }, "fd 10: watches files (inotify)"},
        Case{"Memfd", [] { Place(::memfd_create("m", 0), 10); }, "fd 10: a memory file"},
        Case{"DeletedFile",
             [] {
               char path[] = "/tmp/predump-deleted-XXXXXX";
               Place(::mkstemp(path), 10);
               ::unlink(path);
             },
             "fd 10: the file was deleted"},
        Case{"ReplacedFile",
             [] {
               char path[] = "/tmp/predump-replaced-XXXXXX";
               Place(::mkstemp(path), 10);
               const std::string other = std::string(path) + ".new";
               ::close(::open(other.c_str(), O_CREAT | O_RDWR, 0600));
               ::rename(other.c_str(), path);
               ::unlink(path);
             },
             "fd 10: the file was deleted"},
        Case{"FileLock",
             [] {
               Place(::open("/tmp", O_RDONLY), 10);
               Require(::flock(10, LOCK_SH) == 0, "flock");
             },
             "fd 10: a file lock or lease is held"},
        Case{"Owner",
             [] {
               Place(::open("/dev/null", O_RDONLY), 10);
               Require(::fcntl(10, F_SETOWN, ::getpid()) == 0, "F_SETOWN");
             },
             "fd 10: has an owner for its signals (F_SETOWN)"},
        Case{"SignalChoice",
             [] {
               Place(::open("/dev/null", O_RDONLY), 10);
               Require(::fcntl(10, F_SETSIG, SIGUSR1) == 0, "F_SETSIG");
             },
             "(F_SETSIG)"},
        Case{"PathOnly", [] { Place(::open("/etc", O_PATH), 10); }, "fd 10: opened with O_PATH"},
        Case{"Namespace", [] { Place(::open("/proc/self/ns/uts", O_RDONLY), 10); },
             "fd 10: refers to a namespace"},
        Case{"ProcFile", [] { Place(::open("/proc/self/status", O_RDONLY), 10); },
             "fd 10: a file of /proc"},
        Case{"SysFile", [] { Place(::open("/sys/kernel", O_RDONLY), 10); },
             "fd 10: a file of the kernel"},
        Case{"Pidfd", [] { Place(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0)), 10); },
             "fd 10: refers to a process (pidfd)"},
        Case{"IoUring",
             [] {
               struct io_uring_params parameters = {};
               Place(static_cast<int>(::syscall(SYS_io_uring_setup, 4, &parameters)), 10);
             },
             "fd 10: asynchronous I/O (io_uring)"},
        Case{"Userfaultfd",
             [] { Place(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC)), 10); },
             "fd 10: handles page faults (userfaultfd)"},
        Case{"PtyMaster", [] { Place(::open("/dev/ptmx", O_RDWR | O_NOCTTY), 10); },
             "fd 10: the master of a terminal"},
        Case{"Fifo",
             [] {
               char path[] = "/tmp/predump-fifo-XXXXXX";
               Require(::mkdtemp(path) != nullptr, "mkdtemp");
               const std::string fifo = std::string(path) + "/fifo";
               Require(::mkfifo(fifo.c_str(), 0600) == 0, "mkfifo");
               Place(::open(fifo.c_str(), O_RDWR), 10);
               ::unlink(fifo.c_str());
               ::rmdir(path);
             },
             "fd 10: a named pipe"},
        Case{"OneEndedPipe",
             [] {
               int ends[2];
               Require(::pipe(ends) == 0, "pipe");
               Place(ends[0], 10);
               ::close(ends[1]);
             },
             "fd 10: a pipe whose write end is not in the process"},
        Case{"StaleEpollEntry",
             [] {
               Place(::epoll_create1(0), 10);
               Place(::eventfd(0, 0), 11);
               struct epoll_event event = {.events = EPOLLIN, .data = {}};
               Require(::epoll_ctl(10, EPOLL_CTL_ADD, 11, &event) == 0, "epoll_ctl");
               ::dup2(11, 12);
               ::close(11);
             },
             "fd 10: epoll watches a file that fd 11 no longer is"},
        Case{
            "EpollEntryThatHasFired",
            [] {
              int pipe[2];
              Require(::pipe(pipe) == 0, "pipe");
              Place(pipe[0], 11);
              Place(pipe[1], 12);
              Place(::epoll_create1(0), 10);
              struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT, .data = {}};
              Require(::epoll_ctl(10, EPOLL_CTL_ADD, 11, &event) == 0, "epoll_ctl");
              char byte = 0;
              Require(::write(12, &byte, 1) == 1, "write");
              Require(::epoll_wait(10, &event, 1, 0) == 1, "epoll_wait");
              Require(::read(11, &byte, 1) == 1, "read");
            },
            "fd 10: an epoll entry has fired (EPOLLONESHOT), and nothing is to be had from fd 11"}),
    [](const auto& test) { return test.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Sockets, Refused,
    ::testing::Values(
        Case{"Netlink", [] { Place(::socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE), 10); },
             "fd 10: a netlink socket"},
        Case{"Raw", [] { Place(::socket(AF_INET, SOCK_RAW, IPPROTO_ICMP), 10); },
             "fd 10: an internet socket of type 3"},
        Case{"Filtered",
             [] {
               Place(::socket(AF_INET, SOCK_DGRAM, 0), 10);
               struct sock_filter accept_all = BPF_STMT(BPF_RET | BPF_K, 0xffff);
               struct sock_fprog program = {.len = 1, .filter = &accept_all};
               Require(
                   ::setsockopt(10, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0,
                   "SO_ATTACH_FILTER");
             },
             "fd 10: a packet filter is attached"},
        Case{"DatagramsOneWay",
             [] {
               Place(::socket(AF_UNIX, SOCK_DGRAM, 0), 11);
               Place(::socket(AF_UNIX, SOCK_DGRAM, 0), 10);
               sockaddr_un address = {};
               address.sun_family = AF_UNIX;
               socklen_t length = sizeof(sa_family_t);  // a name of the kernel's choice
               auto* generic = reinterpret_cast<sockaddr*>(&address);
               Require(::bind(11, generic, length) == 0, "bind");
               length = sizeof address;
               ::getsockname(11, generic, &length);
               Require(::connect(10, generic, length) == 0, "connect");
             },
             "fd 10: a unix socket that is connected one way"},
        Case{
            "ConnectedToItsOwnName",
            [] { ConnectToSelf(std::string(1, '\0') + "predump-own-" + std::to_string(getpid())); },
            "fd 10: a unix socket with a connection and the name of another (@predump-own-"},
        Case{"MulticastInterface",
             [] {
               Place(::socket(AF_INET6, SOCK_DGRAM, 0), 10);
               const int loopback = static_cast<int>(::if_nametoindex("lo"));
               Require(::setsockopt(10, IPPROTO_IPV6, IPV6_MULTICAST_IF, &loopback,
                                    sizeof loopback) == 0,
                       "IPV6_MULTICAST_IF");
             },
             "fd 10: names an interface by its number (IPV6_MULTICAST_IF)"},
        Case{"PeekOffset",
             [] {
               int pair[2];
               Require(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
               Place(pair[0], 10);
               Place(pair[1], 11);
               const int offset = 0;
               Require(::setsockopt(10, SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof offset) == 0,
                       "SO_PEEK_OFF");
             },
             "fd 10: peeks at an offset of its own"},
        Case{"ResetConnection",
             [] {
               Place(::socket(AF_INET, SOCK_STREAM, 0), 12);
               sockaddr_in address = {};
               address.sin_family = AF_INET;
               address.sin_addr.s_addr = ::inet_addr("127.0.0.1");
               auto* generic = reinterpret_cast<sockaddr*>(&address);
               Require(::bind(12, generic, sizeof address) == 0 && ::listen(12, 5) == 0, "listen");
               socklen_t length = sizeof address;
               ::getsockname(12, generic, &length);
               Place(::socket(AF_INET, SOCK_STREAM, 0), 10);
               Require(::connect(10, generic, sizeof address) == 0, "connect");
               Place(::accept(12, nullptr, nullptr), 11);
               const struct linger at_once = {.l_onoff = 1, .l_linger = 0};
               Require(::setsockopt(11, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) == 0,
                       "SO_LINGER");
               ::close(11);
               ::close(12);
             },
             "fd 10: a TCP connection that has ended, but not for its reader"},
        Case{"WaitingConnection",
             [] {
               Place(::socket(AF_INET, SOCK_STREAM, 0), 10);
               sockaddr_in address = {};
               address.sin_family = AF_INET;
               address.sin_addr.s_addr = ::inet_addr("127.0.0.1");
               auto* generic = reinterpret_cast<sockaddr*>(&address);
               Require(::bind(10, generic, sizeof address) == 0 && ::listen(10, 5) == 0, "listen");
               socklen_t length = sizeof address;
               ::getsockname(10, generic, &length);
               Place(::socket(AF_INET, SOCK_STREAM, 0), 11);
               Require(::connect(11, generic, sizeof address) == 0, "connect");
             },
             "fd 10: 1 TCP connections wait to be accepted"},
        Case{"HalfOfAPair",
             [] {
               int pair[2];
               Require(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
               Place(pair[0], 10);
               ::close(pair[1]);
             },
             "fd 10: a unix socket whose peer has closed"}),
    [](const auto& test) { return test.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Attributes, Refused,
    ::testing::Values(
        Case{"ChildProcess", ForkHolder, "child process "},
        Case{"PosixTimer",
             [] {
               timer_t timer;
               Require(::timer_create(CLOCK_MONOTONIC, nullptr, &timer) == 0, "timer_create");
             },
             "attribute timers: 1 POSIX timers"},
        Case{"UtsNamespace", [] { Require(::unshare(CLONE_NEWUTS) == 0, "unshare"); },
             "attribute uts namespace: differs"},
        Case{"PidNamespaceOfChildren", [] { Require(::unshare(CLONE_NEWPID) == 0, "unshare"); },
             "attribute pid namespace: its children would be born in another one"},
        Case{"Seccomp",
             [] {
               Require(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no_new_privs");
               struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, 0x7fff0000);
               struct sock_fprog program = {.len = 1, .filter = &allow};
               Require(::syscall(SYS_seccomp, 1, 0, &program) == 0, "seccomp");
             },
             "attribute seccomp"},
        Case{"UserDispatch",
             [] {
               static char selector = 0;
               Require(
                   ::prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, 0, 0, &selector) == 0,
                   "PR_SET_SYSCALL_USER_DISPATCH");
             },
             "redirects its system calls"},
        Case{"MemoryMerging",
             [] { Require(::prctl(67 /* PR_SET_MEMORY_MERGE */, 1, 0, 0, 0) == 0, "merge"); },
             "attribute memory merging"},
        Case{"DeletedWorkingDirectory",
             [] {
               char path[] = "/tmp/predump-cwd-XXXXXX";
               Require(::mkdtemp(path) != nullptr && ::chdir(path) == 0, "chdir");
               ::rmdir(path);
             },
             "attribute cwd: the file was deleted"}),
    [](const auto& test) { return test.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Mappings, Refused,
    ::testing::Values(Case{"SharedAnonymous",
                           [] {
                             ::mmap(nullptr, 4096, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
                           },
                           "shared anonymous memory"},
                      Case{"SystemV",
                           [] {
                             const int id = ::shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600);
                             Require(id >= 0 && ::shmat(id, nullptr, 0) != MAP_FAILED, "shmat");
                             ::shmctl(id, IPC_RMID, nullptr);
                           },
                           "System V shared memory"},
                      Case{"DeletedFile",
                           [] {
                             char path[] = "/tmp/predump-map-XXXXXX";
                             const int fd = ::mkstemp(path);
                             Require(::ftruncate(fd, 4096) == 0, "ftruncate");
                             ::mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
                             ::close(fd);
                             ::unlink(path);
                           },
                           "deleted file"},
                      Case{"LockOnFault",
                           [] {
                             void* memory = ::mmap(nullptr, 4096, PROT_READ,
                                                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
                             Require(::mlock2(memory, 4096, MLOCK_ONFAULT) == 0, "mlock2");
                           },
                           "locked as it is touched"}),
    [](const auto& test) { return test.param.name; });

TEST(RefusedWithOthers, APipeThatAnotherProcessHasOpenToo) {
  const ForkedProcess child([] {
    int inner[2];
    Require(::pipe(inner) == 0, "pipe");
    Place(inner[0], 10);
    Place(inner[1], 11);
    ForkHolder();
  });
  const auto blockers = BlockersOf(child.handle());
  ASSERT_TRUE(blockers.ok()) << blockers.status();
  EXPECT_THAT(*blockers, Contains(HasSubstr("is also open in process")));
}

TEST(RefusedWithOthers, AStoppedProcess) {
  const ForkedProcess child([] {});
  ::kill(child.pid(), SIGSTOP);
  int status = 0;
  ASSERT_EQ(::waitpid(child.pid(), &status, WUNTRACED), child.pid());
  const auto blockers = BlockersOf(child.handle());
  ::kill(child.pid(), SIGCONT);
  ASSERT_TRUE(blockers.ok()) << blockers.status();
  EXPECT_THAT(*blockers, Contains("attribute state: stopped by a signal"));
}

TEST(RefusedWithOthers, ATracedProcess) {
  const ForkedProcess child([] {});
  ASSERT_EQ(::ptrace(PTRACE_SEIZE, child.pid(), nullptr, nullptr), 0);
  const auto blockers = BlockersOf(child.handle());
  ASSERT_TRUE(blockers.ok()) << blockers.status();
  EXPECT_THAT(*blockers, Contains(HasSubstr("traces it")));
}

TEST(RefusedWithOthers, ControllingTerminalUnlessShellJob) {
  const ForkedProcess child([] {
    const int master = ::posix_openpt(O_RDWR | O_NOCTTY);
    Require(master >= 0 && ::grantpt(master) == 0 && ::unlockpt(master) == 0, "posix_openpt");
    const std::string name = ::ptsname(master);
    // Another process keeps the terminal alive, as a terminal emulator does.
    ForkHolder();
    ::close(master);
    Place(::open(name.c_str(), O_RDWR), 10);  // a session leader without one gets it
  });
  const auto blockers = BlockersOf(child.handle());
  ASSERT_TRUE(blockers.ok()) << blockers.status();
  EXPECT_THAT(*blockers, Contains(HasSubstr("attribute controlling terminal")));
  EXPECT_THAT(*blockers, Contains(HasSubstr("fd 10: a terminal")));
  const auto as_job = BlockersOf(child.handle(), {.shell_job = true});
  ASSERT_TRUE(as_job.ok()) << as_job.status();
  EXPECT_THAT(*as_job, ::testing::Not(Contains(HasSubstr("terminal"))));
}

TEST(RefusedWithOthers, WithoutBpfNothingMoreIsRefused) {
  const ForkedProcess child([] {});
  const auto blockers = BlockersOf(child.handle(), {.use_bpf = false});
  ASSERT_TRUE(blockers.ok()) << blockers.status();
  EXPECT_THAT(*blockers, ::testing::IsEmpty());
}

TEST(RefusedAtTheFreeze, DescriptorsInAQueue) {
  const ForkedProcess child([] {
    int pair[2];
    Require(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
    Place(pair[0], 10);
    Place(pair[1], 11);
    char byte = 'x';
    struct iovec vector = {.iov_base = &byte, .iov_len = 1};
    alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    struct msghdr message = {};
    message.msg_iov = &vector;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    struct cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    const int passed = 0;
    std::memcpy(CMSG_DATA(header), &passed, sizeof passed);
    Require(::sendmsg(10, &message, 0) == 1, "sendmsg");
  });
  EXPECT_THAT(testing::CaptureOnce(child.handle()).status().message(),
              HasSubstr("fd 11: descriptors travel in its queue (SCM_RIGHTS)"));
}

TEST(RefusedWithOthers, AConnectionToItsOwnPath) {
  const auto directory = test_support::TempDir::Create();
  ASSERT_TRUE(directory.ok());
  const std::string path = directory->File("socket");
  const ForkedProcess child([&] { ConnectToSelf(path); });
  const auto blockers = BlockersOf(child.handle());
  ASSERT_TRUE(blockers.ok()) << blockers.status();
  EXPECT_THAT(*blockers, Contains(absl::StrCat(
                             "fd 10: a unix socket with a connection and a path (", path, ")")));
}

TEST(RefusedWithOthers, AllAtOnce) {
  const ForkedProcess child([] {
    Place(::inotify_init(), 10);
    Place(::memfd_create("m", 0), 11);
    ::mmap(nullptr, 4096, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  });
  const auto state = testing::CaptureOnce(child.handle());
  EXPECT_EQ(state.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(state.status().message(), HasSubstr("fd 10"));
  EXPECT_THAT(state.status().message(), HasSubstr("fd 11"));
  EXPECT_THAT(state.status().message(), HasSubstr("shared anonymous"));
}

}  // namespace
}  // namespace predump::checkpoint
