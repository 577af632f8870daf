// What cannot be built is explained, and leaves nothing.
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/unique_fd.h"
#include "src/images/image_constants.h"
#include "tests/restore/build_fixture.h"

namespace predump::restore {
namespace {

using ::testing::HasSubstr;

struct Failure {
  const char* name;
  void (*arrange)(proto::ProcessState& state, uint32_t taken_port);
  const char* words;
};

class BuildFailureTest : public BuildTest, public ::testing::WithParamInterface<Failure> {};

TEST_P(BuildFailureTest, IsExplainedAndLeavesNothing) {
  const base::UniqueFd listener(::socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
  ASSERT_EQ(::listen(listener.get(), 1), 0);
  ASSERT_EQ(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  ASSERT_NO_FATAL_FAILURE(Prepare([](Report* report) {
    std::thread([report] { Beat(report, 1); }).detach();
    while (report->beats[1] == 0) ::sched_yield();
    Beat(report, 0);
  }));
  const std::string path = directory_->File("bound");
  AddDescriptor(state_, 40, UnixSocket(900, images::kSocketListening, 0, path));
  GetParam().arrange(state_, ntohs(address.sin_port));
  const absl::Status built = Build();
  EXPECT_THAT(built.ToString(), HasSubstr(GetParam().words));
  ExpectNothingLeft();
  EXPECT_NE(::access(path.c_str(), F_OK), 0) << "a socket file is left";
}

INSTANTIATE_TEST_SUITE_P(
    EveryKind, BuildFailureTest,
    ::testing::Values(
        Failure{"MissingFile",
                [](proto::ProcessState& s, uint32_t) {
                  AddDescriptor(s, 9, RegularFile("/nowhere/x", O_RDONLY));
                },
                "open /nowhere/x (fd 9): No such file"},
        Failure{"PortTaken",
                [](proto::ProcessState& s, uint32_t port) {
                  AddDescriptor(s, 9, InetSocket(SOCK_STREAM, images::kSocketListening, port));
                },
                "Address already in use"},
        Failure{"MissingExecutable",
                [](proto::ProcessState& s, uint32_t) {
                  s.mutable_mm()->set_exe_file_id(
                      AddDescriptor(s, 9, RegularFile("/nowhere/exe", O_RDONLY)));
                },
                "open the executable /nowhere/exe"},
        Failure{"MissingDirectory",
                [](proto::ProcessState& s, uint32_t) {
                  s.mutable_fs()->set_cwd_id(AddDescriptor(s, 9, RegularFile("/tmp", O_RDONLY)));
                  s.mutable_files(s.files_size() - 1)->mutable_reg()->set_name("/nowhere");
                  s.clear_descriptors();
                },
                "working directory /nowhere"},
        Failure{"DescriptorBeyondTheLimit",
                [](proto::ProcessState& s, uint32_t) {
                  AddDescriptor(s, (1u << 20) * 15, RegularFile("/dev/null", O_RDONLY));
                },
                "fd 15728640"},
        Failure{"ThreadNumberTaken",
                [](proto::ProcessState& s, uint32_t) {
                  s.mutable_threads(1)->set_tid(1);  // the reaper
                  s.mutable_pstree()->set_threads(1, 1);
                },
                "create thread 1: File exists"},
        Failure{"PendingSignalNotAllowed",
                [](proto::ProcessState& s, uint32_t) {
                  s.mutable_threads(0)->mutable_core()->mutable_tc()->set_oom_score_adj(2000);
                },
                "oom_score_adj"},
        Failure{"Seccomp",
                [](proto::ProcessState& s, uint32_t) {
                  s.mutable_threads(0)->mutable_core()->mutable_thread_core()->set_seccomp_mode(
                      criu::filter);
                },
                "seccomp"},
        Failure{"AnotherVdso",
                [](proto::ProcessState& s, uint32_t) {
                  for (auto& vma : *s.mutable_mm()->mutable_vmas()) {
                    if ((vma.status() & images::kVmaVdso) != 0) vma.set_end(vma.end() - 4096);
                  }
                },
                "vDSO has"}),
    [](const auto& tested) { return std::string(tested.param.name); });

}  // namespace
}  // namespace predump::restore
