// `files` notices when something it holds is changed behind its back, as a faulty restore would.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "src/base/unique_fd.h"
#include "tests/support/temp_dir.h"
#include "tests/support/workload_process.h"

namespace predump::test_support {
namespace {

using ::testing::ContainsRegex;

// Duplicates of the workload's descriptors whose link target contains `text`, in order.
std::vector<base::UniqueFd> Borrow(WorkloadProcess& workload, const std::string& text) {
  std::vector<base::UniqueFd> borrowed;
  for (int number = 0; number < 1024; ++number) {
    char target[4096];
    const std::string link = absl::StrCat("/proc/", workload.pid(), "/fd/", number);
    const ssize_t size = readlink(link.c_str(), target, sizeof target);
    if (size < 0 ||
        !absl::StrContains(absl::string_view(target, static_cast<size_t>(size)), text)) {
      continue;
    }
    const long fd = syscall(SYS_pidfd_getfd, workload.child().pidfd(), number, 0);
    EXPECT_GE(fd, 0) << link;
    borrowed.emplace_back(static_cast<int>(fd));
  }
  EXPECT_FALSE(borrowed.empty()) << text;
  return borrowed;
}

struct Disturbance {
  std::string test_name;
  std::string error;  // a regular expression for what the workload says
  std::function<void(WorkloadProcess&)> disturb;
};

void PrintTo(const Disturbance& disturbance, std::ostream* out) { *out << disturbance.test_name; }

std::string NameOf(const ::testing::TestParamInfo<Disturbance>& info) {
  return info.param.test_name;
}

class FilesJudgeTest : public ::testing::TestWithParam<Disturbance> {};

TEST_P(FilesJudgeTest, NoticesTheChange) {
  absl::StatusOr<TempDir> directory = TempDir::Create();
  ASSERT_TRUE(directory.ok()) << directory.status();
  absl::StatusOr<WorkloadProcess> workload =
      WorkloadProcess::Start("files", directory->File("report"), {"--cycle=20"});
  ASSERT_TRUE(workload.ok()) << workload.status();
  ASSERT_TRUE(workload->report().WaitForProgress(50, absl::Seconds(30)).ok());
  ASSERT_TRUE(workload->report().Health().ok()) << workload->report().Health();
  GetParam().disturb(*workload);
  const absl::Status noticed = workload->report().WaitForErrors(1, absl::Seconds(30));
  ASSERT_TRUE(noticed.ok()) << noticed;
  EXPECT_THAT(workload->report().FirstError(), ContainsRegex(GetParam().error));
  EXPECT_FALSE(workload->StopAndJudge().ok());
}

void MoveOffset(WorkloadProcess& workload) {
  EXPECT_EQ(lseek(Borrow(workload, "/written")[0].get(), 3, SEEK_SET), 3);
}

void TruncateLog(WorkloadProcess& workload) {
  EXPECT_EQ(ftruncate(Borrow(workload, "/log")[0].get(), 64), 0);
}

void MoveDirectoryPosition(WorkloadProcess& workload) {
  EXPECT_EQ(lseek(Borrow(workload, "/listed")[0].get(), 0, SEEK_SET), 0);
}

void ChangeStatusFlags(WorkloadProcess& workload) {
  EXPECT_EQ(fcntl(Borrow(workload, "/dev/zero")[0].get(), F_SETFL, O_NONBLOCK), 0);
}

void StealFromPipe(WorkloadProcess& workload) {
  for (const base::UniqueFd& fd : Borrow(workload, "pipe:")) {
    char byte;
    if (read(fd.get(), &byte, 1) == 1) return;
  }
  ADD_FAILURE() << "no pipe could be read";
}

void StealFromSocketPairs(WorkloadProcess& workload) {
  for (const base::UniqueFd& fd : Borrow(workload, "socket:")) {
    char byte;
    [[maybe_unused]] const ssize_t size = recv(fd.get(), &byte, 1, MSG_DONTWAIT);
  }
}

void AddToEventDescriptors(WorkloadProcess& workload) {
  for (const base::UniqueFd& fd : Borrow(workload, "[eventfd]")) {
    const uint64_t one = 1;
    EXPECT_EQ(write(fd.get(), &one, sizeof one), static_cast<ssize_t>(sizeof one));
  }
}

void DisarmTimers(WorkloadProcess& workload) {
  for (const base::UniqueFd& fd : Borrow(workload, "[timerfd]")) {
    const itimerspec off = {};
    EXPECT_EQ(timerfd_settime(fd.get(), 0, &off, nullptr), 0);
  }
}

void ChangeSocketOption(WorkloadProcess& workload) {
  for (const base::UniqueFd& fd : Borrow(workload, "socket:")) {
    const int off = 0;
    setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &off, sizeof off);
  }
}

void ChangeBacklog(WorkloadProcess& workload) {
  for (const base::UniqueFd& fd : Borrow(workload, "socket:")) {
    int listening = 0;
    socklen_t size = sizeof listening;
    getsockopt(fd.get(), SOL_SOCKET, SO_ACCEPTCONN, &listening, &size);
    if (listening != 0) {
      EXPECT_EQ(listen(fd.get(), 3), 0);
    }
  }
}

void SendOneSignalMore(WorkloadProcess& workload) {
  sigval value = {};
  EXPECT_EQ(sigqueue(workload.pid(), SIGRTMIN + 11, value), 0);
}

void ChangeNiceness(WorkloadProcess& workload) {
  EXPECT_EQ(setpriority(PRIO_PROCESS, static_cast<id_t>(workload.pid()), 7), 0);
}

void ChangeLimit(WorkloadProcess& workload) {
  const rlimit limit = {512, 512};
  EXPECT_EQ(prlimit(workload.pid(), RLIMIT_NOFILE, &limit, nullptr), 0);
}

void ChangeScheduler(WorkloadProcess& workload) {
  const sched_param none = {};
  EXPECT_EQ(sched_setscheduler(workload.pid(), SCHED_BATCH, &none), 0);
}

void ChangeOomScore(WorkloadProcess& workload) {
  std::ofstream(absl::StrCat("/proc/", workload.pid(), "/oom_score_adj")) << "124";
}

INSTANTIATE_TEST_SUITE_P(
    All, FilesJudgeTest,
    ::testing::Values(Disturbance{"Offset", "offset", MoveOffset},
                      Disturbance{"LogContent", "record is wrong|file size", TruncateLog},
                      Disturbance{"DirectoryPosition", "directory", MoveDirectoryPosition},
                      Disturbance{"StatusFlags", "descriptor", ChangeStatusFlags},
                      Disturbance{"PipeContent", "pipe", StealFromPipe},
                      Disturbance{"QueuedMessages", "pair", StealFromSocketPairs},
                      Disturbance{"EventCounters", "", AddToEventDescriptors},
                      Disturbance{"Timers", "timerfd", DisarmTimers},
                      Disturbance{"SocketOption", "TCP_NODELAY", ChangeSocketOption},
                      Disturbance{"Backlog", "backlog", ChangeBacklog},
                      Disturbance{"PendingSignal", "signal", SendOneSignalMore},
                      Disturbance{"Niceness", "nice", ChangeNiceness},
                      Disturbance{"Limit", "rlimit", ChangeLimit},
                      Disturbance{"Scheduler", "scheduler", ChangeScheduler},
                      Disturbance{"OomScore", "oom_score_adj", ChangeOomScore}),
    NameOf);

}  // namespace
}  // namespace predump::test_support
