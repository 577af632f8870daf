#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "src/base/errors.h"
#include "tests/support/child_process.h"
#include "tests/support/network_namespaces.h"
#include "tests/support/temp_dir.h"

namespace predump::test_support {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Side = NetworkNamespacePair::Side;

StartOptions Command(std::vector<std::string> argv) {
  StartOptions options;
  options.argv = std::move(argv);
  return options;
}

// Our own view: 0 while the process exists (a zombie does).
bool Exists(pid_t pid) { return kill(pid, 0) == 0; }

TEST(TempDirTest, IsRemovedWithAllItHolds) {
  std::string path;
  {
    absl::StatusOr<TempDir> directory = TempDir::Create();
    ASSERT_TRUE(directory.ok()) << directory.status();
    path = directory->path();
    ASSERT_EQ(mkdir(directory->File("below").c_str(), 0700), 0);
    std::ofstream(directory->File("below/file")) << "text";
    ASSERT_EQ(symlink("/", directory->File("root").c_str()), 0);
    ASSERT_EQ(access(directory->File("below/file").c_str(), F_OK), 0);
    const TempDir moved = *std::move(directory);
    ASSERT_EQ(access(path.c_str(), F_OK), 0);
  }
  EXPECT_NE(access(path.c_str(), F_OK), 0);
  EXPECT_EQ(access("/usr", F_OK), 0);
}

TEST(ChildProcessTest, TellsExitCodeAndSignal) {
  absl::StatusOr<ChildProcess> exits = ChildProcess::Start(Command({"sh", "-c", "exit 7"}));
  ASSERT_TRUE(exits.ok()) << exits.status();
  absl::StatusOr<ExitStatus> status = exits->Wait(absl::Seconds(10));
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_EQ(status->code, 7);
  EXPECT_EQ(exits->Wait(absl::Seconds(1))->code, 7);
  EXPECT_EQ(exits->Signal(SIGTERM).code(), absl::StatusCode::kFailedPrecondition);

  absl::StatusOr<ChildProcess> sleeps = ChildProcess::Start(Command({"sleep", "100"}));
  ASSERT_TRUE(sleeps.ok()) << sleeps.status();
  status = sleeps->Terminate(absl::Seconds(10));
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_EQ(status->signal, SIGTERM);
  EXPECT_EQ(status->ToString(), "signal 15");
}

TEST(ChildProcessTest, ReportsWhatCannotBeStarted) {
  EXPECT_EQ(ChildProcess::Start(Command({"/no/such/program"})).status().code(),
            absl::StatusCode::kNotFound);
  StartOptions elsewhere = Command({"true"});
  elsewhere.working_directory = "/no/such/directory";
  const absl::Status status = ChildProcess::Start(elsewhere).status();
  EXPECT_THAT(status.message(), HasSubstr("chdir"));
  EXPECT_FALSE(ChildProcess::Start(StartOptions()).ok());
}

TEST(ChildProcessTest, KillsTheChildOnDestruction) {
  pid_t pid = -1;
  {
    absl::StatusOr<ChildProcess> child = ChildProcess::Start(Command({"sleep", "100"}));
    ASSERT_TRUE(child.ok()) << child.status();
    pid = child->pid();
    const ChildProcess moved = *std::move(child);
    EXPECT_TRUE(Exists(pid));
  }
  EXPECT_FALSE(Exists(pid));
}

TEST(ChildProcessTest, WaitGivesUpAtItsDeadlineAndTheChildRunsOn) {
  absl::StatusOr<ChildProcess> child = ChildProcess::Start(Command({"sleep", "100"}));
  ASSERT_TRUE(child.ok()) << child.status();
  EXPECT_EQ(child->Wait(absl::Milliseconds(50)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(Exists(child->pid()));
}

TEST(ChildProcessTest, GivesTheChildDescriptorsEnvironmentAndDirectory) {
  absl::StatusOr<TempDir> directory = TempDir::Create();
  ASSERT_TRUE(directory.ok()) << directory.status();
  const base::UniqueFd output(
      open(directory->File("output").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  StartOptions options =
      Command({"sh", "-c", "echo $GREETING; pwd; echo bad >&2; ls /proc/self/fd"});
  options.environment = {{"GREETING", "hello"}};
  options.working_directory = directory->path();
  options.stdout_fd = output.get();
  options.stderr_fd = output.get();
  absl::StatusOr<ChildProcess> child = ChildProcess::Start(options);
  ASSERT_TRUE(child.ok()) << child.status();
  ASSERT_TRUE(child->Wait(absl::Seconds(10)).ok());
  std::ifstream file(directory->File("output"));
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  // 3 is the directory ls itself reads.
  EXPECT_EQ(text, absl::StrCat("hello\n", directory->path(), "\nbad\n0\n1\n2\n3\n"));
}

TEST(ChildProcessTest, CrossedDescriptorsArriveUncrossed) {
  absl::StatusOr<TempDir> directory = TempDir::Create();
  ASSERT_TRUE(directory.ok()) << directory.status();
  StartOptions options = Command({"sh", "-c", "echo to-output; echo to-errors >&2"});
  options.stdout_fd = STDERR_FILENO;
  options.stderr_fd = STDOUT_FILENO;
  const base::UniqueFd saved_output(fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3));
  const base::UniqueFd saved_errors(fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3));
  const int flags = O_RDWR | O_CREAT | O_CLOEXEC;
  const base::UniqueFd one(open(directory->File("one").c_str(), flags, 0600));
  const base::UniqueFd two(open(directory->File("two").c_str(), flags, 0600));
  dup2(one.get(), STDOUT_FILENO);
  dup2(two.get(), STDERR_FILENO);
  absl::StatusOr<ChildProcess> child = ChildProcess::Start(options);
  dup2(saved_output.get(), STDOUT_FILENO);
  dup2(saved_errors.get(), STDERR_FILENO);
  ASSERT_TRUE(child.ok()) << child.status();
  ASSERT_TRUE(child->Wait(absl::Seconds(10)).ok());
  std::string line;
  std::ifstream(directory->File("two")) >> line;
  EXPECT_EQ(line, "to-output");
  std::ifstream(directory->File("one")) >> line;
  EXPECT_EQ(line, "to-errors");
}

TEST(RunCommandTest, CollectsBothStreamsWhole) {
  // More than a pipe holds, on both at once.
  absl::StatusOr<CommandResult> result =
      RunCommand({"sh", "-c", "head -c 300000 /dev/zero; head -c 200000 /dev/zero >&2; exit 3"});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->output.size(), 300000U);
  EXPECT_EQ(result->errors.size(), 200000U);
  EXPECT_EQ(result->exit.code, 3);
}

TEST(RunCommandTest, DoesNotWaitForAGrandchildHoldingThePipes) {
  absl::StatusOr<CommandResult> result =
      RunCommand({"sh", "-c", "sleep 30 & echo $!"}, absl::Seconds(10));
  ASSERT_TRUE(result.ok()) << result.status();
  const pid_t grandchild = atoi(result->output.c_str());
  ASSERT_GT(grandchild, 1);
  EXPECT_TRUE(Exists(grandchild));
  kill(grandchild, SIGKILL);
}

TEST(RunCommandTest, KillsAtTheDeadlineAndSaysWhatWasSaid) {
  const absl::StatusOr<CommandResult> result =
      RunCommand({"sh", "-c", "echo begun; exec sleep 100"}, absl::Milliseconds(300));
  EXPECT_EQ(result.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(result.status().message(), HasSubstr("begun"));
}

TEST(NetworkNamespacePairTest, JoinsTwoNamespacesAndCanBeCut) {
  absl::StatusOr<NetworkNamespacePair> pair = NetworkNamespacePair::Create();
  ASSERT_TRUE(pair.ok()) << pair.status();
  // A connection attempt to a closed port is answered by a refusal only over an intact cable.
  const auto knock = [&]() -> std::string {
    StartOptions options = Command(pair->Inside(
        Side::kSource,
        {"bash", "-c",
         absl::StrCat("timeout 1 bash -c '</dev/tcp/", pair->address(Side::kTarget), "/9'")}));
    const absl::StatusOr<CommandResult> result = RunCommand(options, absl::Seconds(20));
    return result.ok() ? result->errors + result->exit.ToString() : result.status().ToString();
  };
  EXPECT_THAT(knock(), HasSubstr("refused"));
  ASSERT_TRUE(pair->CutCable().ok());
  EXPECT_THAT(knock(), ::testing::Not(HasSubstr("refused")));
  ASSERT_TRUE(pair->MendCable().ok());
  EXPECT_THAT(knock(), HasSubstr("refused"));
  EXPECT_TRUE(pair->OpenNamespace(Side::kTarget).ok());
}

TEST(NetworkNamespacePairTest, PairsDoNotMeetAndLeaveNothing) {
  std::string name;
  {
    absl::StatusOr<NetworkNamespacePair> one = NetworkNamespacePair::Create();
    absl::StatusOr<NetworkNamespacePair> two = NetworkNamespacePair::Create();
    ASSERT_TRUE(one.ok()) << one.status();
    ASSERT_TRUE(two.ok()) << two.status();
    EXPECT_NE(one->name(Side::kSource), two->name(Side::kSource));
    name = one->name(Side::kSource);
    EXPECT_EQ(access(absl::StrCat("/run/netns/", name).c_str(), F_OK), 0);
  }
  EXPECT_NE(access(absl::StrCat("/run/netns/", name).c_str(), F_OK), 0);
  const absl::StatusOr<CommandResult> list = RunCommand({"ip", "netns", "list"});
  ASSERT_TRUE(list.ok()) << list.status();
  EXPECT_THAT(list->output, ::testing::Not(HasSubstr(absl::StrCat("predump-", getpid(), "-"))));
}

}  // namespace
}  // namespace predump::test_support
