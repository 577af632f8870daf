// Each thing a target may lack is named before anything is touched.
#include "src/restore/target_check.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/unique_fd.h"
#include "src/images/image_constants.h"

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
  begin.set_pid(4'000'000);
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

TEST(TargetCheckTest, FilesMustBeThereAndTheSame) {
  proto::Begin begin = FreePid();
  AddFile(begin, "/nowhere/x");
  struct stat info;
  ASSERT_EQ(::stat("/proc/self/exe", &info), 0);
  char path[4096] = {};
  ASSERT_GT(::readlink("/proc/self/exe", path, sizeof(path) - 1), 0);
  AddFile(begin, path).set_size(static_cast<uint64_t>(info.st_size));
  EXPECT_THAT(Find(begin), ::testing::ElementsAre(HasSubstr("file /nowhere/x: not on the target")));
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
