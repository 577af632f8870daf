// How landings come into the world and leave it; landing_test.cc has what they do meanwhile.
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/unique_fd.h"
#include "src/kernel/process.h"
#include "src/kernel/procfs.h"
#include "src/restore/landing.h"
#include "tests/restore/frame_source.h"

namespace predump::restore {
namespace {

using ::testing::HasSubstr;
using transport::DataKind;

constexpr uint64_t kPage = 4096;
constexpr pid_t kPid = 4321;
constexpr uint64_t kPlain = 0x10000000;

bool EndsWithin(pid_t pid, absl::Duration limit) {
  auto process = kernel::ProcessHandle::Open(pid);
  if (!process.ok()) return true;
  auto exited = process->WaitForExit(limit);
  return exited.ok() && *exited;
}

// A child that runs `run` with the write end of a pipe, of which the test has the other.
struct ForkedServer {
  explicit ForkedServer(void (*run)(int pipe)) {
    int ends[2] = {-1, -1};
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    reader = base::UniqueFd(ends[0]);
    const base::UniqueFd writer(ends[1]);
    pid = ::fork();
    if (pid == 0) {
      run(writer.get());
      ::_exit(0);
    }
    EXPECT_GT(pid, 0);
  }
  // Ends it, unless it has ended, and collects it.
  void Kill() const {
    if (pid <= 0) return;
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
  }

  base::UniqueFd reader;
  pid_t pid = -1;
};

TEST(LandingLifeTest, DiesWithItsObjectAndLeavesNoReaper) {
  FrameSource source;
  pid_t pid = 0;
  {
    LandingOptions options;
    options.pid = kPid;
    options.new_pid_namespace = true;
    options.data_socket = source.TakeLandingEnd();
    auto landing = Landing::Start(std::move(options));
    ASSERT_TRUE(landing.ok()) << landing.status();
    pid = landing->outer_pid();
  }
  EXPECT_FALSE(kernel::ProcessHandle::Open(pid).ok());
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1);  // no child of ours is left
  EXPECT_EQ(errno, ECHILD);
}

TEST(LandingLifeTest, ATakenPidIsSaidToBeTaken) {
  FrameSource source;
  LandingOptions options;
  options.pid = ::getpid();
  options.data_socket = source.TakeLandingEnd();
  auto landing = Landing::Start(std::move(options));
  EXPECT_TRUE(absl::IsAlreadyExists(landing.status())) << landing.status();
  EXPECT_THAT(landing.status().message(), HasSubstr("is taken on this host"));
}

// The kernel gives the reaper the next number.
TEST(LandingLifeTest, TheReaperDoesNotKeepTheNumberThatIsWanted) {
  const pid_t ended = ::fork();
  if (ended == 0) ::_exit(0);
  ASSERT_EQ(::waitpid(ended, nullptr, 0), ended);
  int in_time = 0;  // nobody else got a number in between
  for (int tries = 0; tries < 20; ++tries) {
    FrameSource source;
    LandingOptions options;
    options.pid = ended;
    options.data_socket = source.TakeLandingEnd();
    std::ofstream("/proc/sys/kernel/ns_last_pid") << ended - 1;
    auto landing = Landing::Start(std::move(options));
    if (absl::IsAlreadyExists(landing.status())) continue;  // somebody else was quicker
    ASSERT_TRUE(landing.ok()) << landing.status();
    EXPECT_EQ(landing->outer_pid(), ended);
    int last = 0;
    std::ifstream("/proc/sys/kernel/ns_last_pid") >> last;
    in_time += last == ended + 1;
  }
  EXPECT_GT(in_time, 0);
}

TEST(LandingLifeTest, AMissingCgroupIsNamed) {
  FrameSource source;
  LandingOptions options;
  options.pid = kPid;
  options.new_pid_namespace = true;
  options.data_socket = source.TakeLandingEnd();
  options.cgroup_path = "/sys/fs/cgroup/predump-no-such-group";
  auto landing = Landing::Start(std::move(options));
  EXPECT_THAT(landing.status().ToString(), HasSubstr("predump-no-such-group"));
}

// Whoever calls execveat(2) from now on waits until the descriptor returned is closed.
int StopAtExecveat() {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_execveat, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {std::size(code), code};
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return -1;
  return static_cast<int>(
      ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program));
}

// What a server of StopAtExecveat() finds; empty if all is well.
std::string TroubleWithALandingThatIsStuck() {
  if (::prctl(PR_SET_CHILD_SUBREAPER, 1) != 0) return "PR_SET_CHILD_SUBREAPER";
  const int listener = StopAtExecveat();
  if (listener < 0) return absl::StrCat("seccomp: ", ::strerror(errno));
  FrameSource source;
  LandingOptions options;
  // A number that is free now.
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(0);
  ::waitpid(pid, nullptr, 0);
  options.pid = pid;
  options.data_socket = source.TakeLandingEnd();
  const absl::Status started = Landing::Start(std::move(options)).status();
  if (!absl::IsDeadlineExceeded(started)) return absl::StrCat("ended with ", started.ToString());
  // Orphans are ours: some that have ended, none that runs.
  pid_t ended = 0;
  while ((ended = ::waitpid(-1, nullptr, WNOHANG | __WALL)) > 0) {
  }
  if (ended == 0) {
    ::kill(pid, SIGKILL);
    return "it runs on";
  }
  return "";
}

// It gets no processor, for one.
TEST(LandingLifeTest, OneThatIsStuckBeforeItsExecIsEndedWithItsReaper) {
  const ForkedServer server([](int pipe) {
    const std::string trouble = TroubleWithALandingThatIsStuck() + "\n";
    (void)!::write(pipe, trouble.data(), trouble.size());
  });
  const bool ended = EndsWithin(server.pid, absl::Seconds(60));
  server.Kill();
  ASSERT_TRUE(ended) << "the server waits for ever";
  char said[512] = {};
  ASSERT_GT(::read(server.reader.get(), said, sizeof said - 1), 0);
  EXPECT_STREQ(said, "\n");
}

TEST(LandingLifeTest, ItsClocksGoOnWhereTheSourceLeftThem) {
  FrameSource source;
  LandingOptions options;
  options.pid = kPid;
  options.new_pid_namespace = true;
  options.data_socket = source.TakeLandingEnd();
  options.monotonic_offset_ns = 5'000'000'000'000;
  options.boottime_offset_ns = 7'000'000'000'001;
  auto landing = Landing::Start(std::move(options));
  ASSERT_TRUE(landing.ok()) << landing.status();
  auto process = kernel::ProcessHandle::Open(landing->outer_pid());
  ASSERT_TRUE(process.ok());
  auto offsets = kernel::ReadProcFile(*process, "timens_offsets");
  ASSERT_TRUE(offsets.ok()) << offsets.status();
  EXPECT_THAT(*offsets, HasSubstr("5000         0"));
  EXPECT_THAT(*offsets, HasSubstr("7000         1"));
}

// A server that starts landings without end until it is killed. Tells their pids through `pipe`.
void RunServer(int pipe) {
  for (;;) {
    FrameSource source;
    LandingOptions options;
    options.pid = kPid;
    options.new_pid_namespace = true;
    options.data_socket = source.TakeLandingEnd();
    auto landing = Landing::Start(std::move(options));
    if (!landing.ok()) ::_exit(1);
    const pid_t pid = landing->outer_pid();
    (void)!::write(pipe, &pid, sizeof(pid));
    source.MapAnonymous(kPlain, 16 * kPage);
    source.Header(DataKind::kRoundEnd, 0, 0);
    (void)source.Answer();
  }
}

TEST(LandingLifeTest, NoneSurvivesAServerKilledAtARandomMoment) {
  const unsigned seed = static_cast<unsigned>(::time(nullptr));
  std::srand(seed);
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  // What a killed server leaves behind becomes our child, and is seen to end.
  ASSERT_EQ(::prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
  for (int round = 0; round < 25; ++round) {
    const ForkedServer server(RunServer);
    ::usleep(static_cast<useconds_t>(std::rand() % 20'000));  // the random moment
    server.Kill();
    // The pipe's last write end is closed once every process that had it is gone.
    pid_t pid = 0;
    while (::read(server.reader.get(), &pid, sizeof(pid)) == sizeof(pid)) {
      EXPECT_TRUE(EndsWithin(pid, absl::Seconds(5))) << "landing " << pid << " lives on";
    }
  }
  const absl::Time limit = absl::Now() + absl::Seconds(5);
  pid_t ended = 0;
  while ((ended = ::waitpid(-1, nullptr, WNOHANG)) >= 0 && absl::Now() < limit) {
    if (ended == 0) ::usleep(1000);
  }
  EXPECT_EQ(ended, -1) << "a landing or a reaper lives on";
  ::prctl(PR_SET_CHILD_SUBREAPER, 0);
}

}  // namespace
}  // namespace predump::restore
