// Each thing a target may lack is named before anything is touched.
#include "src/restore/target_check.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/unique_fd.h"
#include "src/images/image_constants.h"
#include "src/restore/plan_room.h"

namespace predump::restore {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<std::string> Find(const proto::Begin& begin, const TargetCheckOptions& options = {}) {
  std::vector<std::string> texts;
  const auto blockers = FindTargetBlockers(begin, options);
  EXPECT_TRUE(blockers.ok()) << blockers.status();
  for (const auto& blocker : *blockers) {
    texts.push_back(absl::StrCat(blocker.what(), ": ", blocker.reason()));
  }
  return texts;
}

proto::Begin FreePid() {
  proto::Begin begin;
  begin.set_session_id("0123456789abcdef");
  // From the top, where the kernel comes last.
  uint32_t pid = 0;
  EXPECT_TRUE(std::ifstream("/proc/sys/kernel/pid_max") >> pid);
  do {
    --pid;
  } while (::access(absl::StrCat("/proc/", pid, "/stat").c_str(), F_OK) == 0 ||
           ::getsid(static_cast<pid_t>(pid)) >= 0 || ::kill(-static_cast<pid_t>(pid), 0) == 0);
  begin.set_pid(pid);
  return begin;
}

criu::reg_file_entry& AddFile(proto::Begin& begin, const std::string& path) {
  criu::file_entry& file = *begin.mutable_preview()->add_files();
  file.set_type(criu::REG);
  file.set_id(static_cast<uint32_t>(begin.preview().files_size()));
  file.mutable_reg()->set_name(path);
  return *file.mutable_reg();
}

criu::inet_sk_entry& AddListener(proto::Begin& begin, uint32_t port) {
  criu::file_entry& file = *begin.mutable_preview()->add_files();
  file.set_type(criu::INETSK);
  file.set_id(static_cast<uint32_t>(begin.preview().files_size()));
  criu::inet_sk_entry& socket = *file.mutable_isk();
  socket.set_family(AF_INET);
  socket.set_type(SOCK_STREAM);
  socket.set_state(images::kSocketListening);
  socket.set_src_port(port);
  socket.add_src_addr(htonl(INADDR_LOOPBACK));
  return socket;
}

TEST(TargetCheckTest, AnEmptyProcessMayCome) { EXPECT_THAT(Find(FreePid()), IsEmpty()); }

TEST(TargetCheckTest, TakenPidsAreNamedUnlessTheProcessGetsANamespace) {
  proto::Begin begin = FreePid();
  begin.add_tids(static_cast<uint32_t>(::getpid()));
  EXPECT_THAT(Find(begin),
              Contains(AllOf(HasSubstr(absl::StrCat("pid ", ::getpid())), HasSubstr("taken"))));
  EXPECT_THAT(Find(begin, {.new_pid_namespace = true}), IsEmpty());
  begin.set_pid(1);
  EXPECT_THAT(Find(begin, {.new_pid_namespace = true}), Contains(HasSubstr("init")));
}

TEST(TargetCheckTest, AProcessThatCouldNotBeBuiltIsSaidToBeTooLarge) {
  proto::Begin begin = FreePid();
  const auto grow_to = [&begin](int threads) {
    while (begin.preview().threads_size() < threads) begin.mutable_preview()->add_threads();
  };
  grow_to(5000);
  EXPECT_TRUE(CheckRoomToBuild(begin.preview()).ok());
  grow_to(20'000);
  EXPECT_THAT(Find(begin), Contains(AllOf(HasSubstr("20000 threads"), HasSubstr("room for 240"))));
  std::vector<proto::Blocker> blockers;
  FindRoomBlockers(begin.preview(), blockers);
  EXPECT_EQ(blockers.size(), 1u);
}

TEST(TargetCheckTest, TheTerminalItHadNeedNotBeHere) {
  proto::Begin begin = FreePid();
  AddFile(begin, "/dev/pts/4711");
  const uint32_t path = begin.preview().files(0).id();
  criu::file_entry& terminal = *begin.mutable_preview()->add_files();
  terminal.set_type(criu::TTY);
  terminal.set_id(path + 1);
  terminal.mutable_tty()->set_regf_id(path);
  EXPECT_THAT(Find(begin, {.shell_job = true}), IsEmpty());
  // As a file of its own it has to.
  begin.mutable_preview()->add_descriptors()->set_id(path);
  EXPECT_THAT(Find(begin, {.shell_job = true}), Contains(HasSubstr("/dev/pts/4711: not on this")));
}

TEST(TargetCheckTest, FilesMustBeThereAndTheSame) {
  proto::Begin begin = FreePid();
  AddFile(begin, "/nowhere/x");
  struct stat info;
  ASSERT_EQ(::stat("/proc/self/exe", &info), 0);
  char path[4096] = {};
  ASSERT_GT(::readlink("/proc/self/exe", path, sizeof(path) - 1), 0);
  AddFile(begin, path).set_size(static_cast<uint64_t>(info.st_size));
  EXPECT_THAT(Find(begin), ::testing::ElementsAre(HasSubstr("file /nowhere/x: not on this host")));
  begin.mutable_preview()->mutable_files(1)->mutable_reg()->set_size(1);
  EXPECT_THAT(Find(begin), Contains(HasSubstr("1 at the source")));
  begin.mutable_preview()->mutable_files(1)->mutable_reg()->clear_size();
  begin.mutable_preview()->mutable_files(1)->mutable_reg()->add_build_id(0xdeadbeef);
  EXPECT_THAT(Find(begin), Contains(HasSubstr("another build")));
  begin.mutable_preview()->mutable_files(1)->mutable_reg()->set_mode(S_IFDIR);
  EXPECT_THAT(Find(begin), Contains(HasSubstr("another kind")));
}

TEST(TargetCheckTest, PortsMustBeFree) {
  const base::UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
  ASSERT_EQ(::listen(listener.get(), 1), 0);
  ASSERT_EQ(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  proto::Begin begin = FreePid();
  AddListener(begin, ntohs(address.sin_port));
  EXPECT_THAT(Find(begin), Contains(AllOf(HasSubstr("TCP 127.0.0.1:"), HasSubstr("in use"))));
}

TEST(TargetCheckTest, MemoryLimitsCapabilitiesAndCgroupAreNamed) {
  proto::Begin begin = FreePid();
  begin.set_memory_bytes(1ull << 50);
  criu::core_entry& core = *begin.mutable_preview()->add_threads()->mutable_core();
  core.mutable_thread_core()->mutable_creds()->add_cap_prm(0);
  core.mutable_thread_core()->mutable_creds()->add_cap_prm(1u << 31);
  const auto found = Find(begin, {.cgroup_path = "/sys/fs/cgroup/predump-none"});
  EXPECT_THAT(found, Contains(HasSubstr("MiB available")));
  EXPECT_THAT(found, Contains(HasSubstr("capability 63")));
  EXPECT_THAT(found, Contains(HasSubstr("cgroup /sys/fs/cgroup/predump-none")));
}

TEST(TargetCheckTest, OptionsAndInterfacesOfSocketsMustBeHad) {
  proto::Begin begin = FreePid();
  criu::inet_sk_entry& socket = AddListener(begin, 0);
  socket.mutable_opts()->set_so_bound_dev("predump-none");
  proto::FileExtra& extra = *begin.mutable_preview()->add_file_extras();
  extra.set_id(1);
  proto::SocketOption& option = *extra.add_socket_options();
  option.set_level(IPPROTO_TCP);
  option.set_name(TCP_CONGESTION);
  option.set_value("predump-none");
  const auto found = Find(begin);
  EXPECT_THAT(found, Contains(HasSubstr("is bound to the interface predump-none, on this host: ")));
  EXPECT_THAT(found, Contains(HasSubstr("option 6/13 cannot be set on this host: ")));
}

TEST(TargetCheckTest, ProcessorsAndNumbersMustBeThere) {
  proto::Begin begin = FreePid();
  proto::ThreadState& thread = *begin.mutable_preview()->add_threads();
  thread.set_tid(7);
  thread.mutable_extra()->set_cpu_affinity(std::string("\1\0\0\0\0\0\0\0", 8));
  EXPECT_THAT(Find(begin), IsEmpty());
  std::string mask(128, '\0');
  mask[0] = 1;
  mask[127] = '\x80';
  thread.mutable_extra()->set_cpu_affinity(mask);
  EXPECT_THAT(Find(begin), Contains(HasSubstr("thread 7: is confined to the processors 0,1023")));
  uint32_t limit = 0;
  ASSERT_TRUE(std::ifstream("/proc/sys/kernel/pid_max") >> limit);
  begin.add_tids(limit);
  EXPECT_THAT(Find(begin), Contains(HasSubstr("kernel.pid_max")));
  EXPECT_THAT(Find(begin, {.new_pid_namespace = true}),
              ::testing::Not(Contains(HasSubstr("kernel.pid_max"))));
}

TEST(TargetCheckTest, FilesToBeWrittenMustBeWritable) {
  proto::Begin begin = FreePid();
  char path[4096] = {};
  ASSERT_GT(::readlink("/proc/self/exe", path, sizeof(path) - 1), 0);
  AddFile(begin, path).set_flags(O_WRONLY | O_APPEND);  // being executed: text file busy
  EXPECT_THAT(Find(begin), IsEmpty()) << "in the list, but not open";
  criu::fdinfo_entry& descriptor = *begin.mutable_preview()->add_descriptors();
  descriptor.set_id(1);
  descriptor.set_fd(3);
  EXPECT_THAT(Find(begin), Contains(HasSubstr("cannot be opened for writing on this host: Text")));
  begin.mutable_preview()->clear_descriptors();
  criu::vma_entry& mapping = *begin.mutable_preview()->mutable_mm()->add_vmas();
  mapping.set_shmid(1);
  mapping.set_flags(MAP_SHARED);
  mapping.set_fdflags(O_RDWR);
  EXPECT_THAT(Find(begin), Contains(HasSubstr("cannot be opened for writing on this host: Text")));
}

TEST(TargetCheckTest, PipesMustFit) {
  proto::Begin begin = FreePid();
  proto::PipeData& pipe = *begin.mutable_preview()->add_pipes();
  pipe.mutable_entry()->set_pipe_id(1);
  pipe.mutable_entry()->set_size(1u << 16);
  EXPECT_THAT(Find(begin), IsEmpty());
  pipe.mutable_entry()->set_size(0xc0000000);
  EXPECT_THAT(Find(begin), Contains(HasSubstr("pipe: its capacity of 3221225472 bytes")));
}

// The texts of Find in a child that is what `become` makes of it.
std::string FindAs(void (*become)(), const proto::Begin& begin) {
  int ends[2];
  EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    become();
    const std::string text = absl::StrJoin(Find(begin), "\n");
    ::_exit(::write(ends[1], text.data(), text.size()) == static_cast<ssize_t>(text.size()) ? 0
                                                                                            : 1);
  }
  ::close(ends[1]);
  std::string text;
  char part[4096];
  for (ssize_t n; (n = ::read(ends[0], part, sizeof part)) > 0;) {
    text.append(part, static_cast<size_t>(n));
  }
  ::close(ends[0]);
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  return text;
}

void Check(bool done) {
  if (!done) ::_exit(2);
}

proto::Begin WithThread() {
  proto::Begin begin = FreePid();
  criu::core_entry& core = *begin.mutable_preview()->add_threads()->mutable_core();
  core.mutable_thread_core()->mutable_creds()->set_secbits(0);
  core.mutable_tc()->set_loginuid(~0u);
  return begin;
}

TEST(TargetCheckTest, AServerUnderSeccompMakesNoProcesses) {
  const std::string found = FindAs(
      [] {
        struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
        struct sock_fprog program = {.len = 1, .filter = &allow};
        Check(::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0);
      },
      WithThread());
  EXPECT_THAT(found, HasSubstr("predump: runs under seccomp"));
}

TEST(TargetCheckTest, NoNewPrivilegesOfTheServerAreForThoseThatHaveThem) {
  const auto become = [] { Check(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0); };
  proto::Begin begin = WithThread();
  EXPECT_THAT(FindAs(become, begin), HasSubstr("predump: has no_new_privs"));
  begin.mutable_preview()
      ->mutable_threads(0)
      ->mutable_core()
      ->mutable_thread_core()
      ->mutable_creds()
      ->set_no_new_privs(1);
  EXPECT_EQ(FindAs(become, begin), "");
}

TEST(TargetCheckTest, WhatTheServerCannotShedIsNamed) {
  EXPECT_THAT(
      FindAs([] { Check(::prctl(PR_SET_SECUREBITS, SECBIT_NOROOT_LOCKED) == 0); }, WithThread()),
      HasSubstr("predump: its secure bits (0x2) are locked"));
  constexpr int kSetMdwe = 65;  // PR_SET_MDWE, Linux 6.3
  EXPECT_THAT(FindAs([] { Check(::prctl(kSetMdwe, 1, 0, 0, 0) == 0); }, WithThread()),
              HasSubstr("predump: may not make memory executable"));
}

TEST(TargetCheckTest, AnOomScoreThatCannotBeGivenIsNamed) {
  proto::Begin begin = WithThread();
  begin.mutable_preview()->mutable_threads(0)->mutable_core()->mutable_tc()->set_oom_score_adj(
      -999);
  const auto become = [] {
    __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct data[2];
    Check(::syscall(SYS_capget, &header, data) == 0);
    data[0].effective &= ~(1u << CAP_SYS_RESOURCE);
    Check(::syscall(SYS_capset, &header, data) == 0);
  };
  EXPECT_THAT(FindAs(become, begin), HasSubstr("attribute oom_score_adj: -999 cannot be given"));
}

TEST(TargetCheckTest, ALoginUidThatCannotBeGivenIsNamed) {
  if (::access("/proc/self/loginuid", F_OK) != 0) GTEST_SKIP() << "no audit in this kernel";
  const auto log_in = [] {
    const int fd = ::open("/proc/self/loginuid", O_WRONLY);
    Check(::write(fd, "4242", 4) == 4 && ::close(fd) == 0);
    __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct data[2];
    Check(::syscall(SYS_capget, &header, data) == 0);
    data[0].effective &= ~(1u << CAP_AUDIT_CONTROL);
    Check(::syscall(SYS_capset, &header, data) == 0);
  };
  proto::Begin begin = WithThread();
  criu::task_core_entry& task =
      *begin.mutable_preview()->mutable_threads(0)->mutable_core()->mutable_tc();
  EXPECT_THAT(
      FindAs(log_in, begin),
      HasSubstr("attribute login uid: none cannot be given on this host, where predump's own "
                "is 4242"));
  task.set_loginuid(4242);
  EXPECT_EQ(FindAs(log_in, begin), "");
}

TEST(TargetCheckTest, TerminalsNeedOneHere) {
  proto::Begin begin = FreePid();
  criu::file_entry& file = *begin.mutable_preview()->add_files();
  file.set_type(criu::TTY);
  file.mutable_tty()->set_id(1);
  EXPECT_THAT(Find(begin), Contains(HasSubstr("terminal")));
  EXPECT_THAT(Find(begin, {.shell_job = true}), IsEmpty());
}

}  // namespace
}  // namespace predump::restore
