#include "tests/support/proc_snapshot.h"

#include <errno.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "tests/support/child_process.h"
#include "tests/support/report_file.h"
#include "tests/support/temp_dir.h"

namespace predump::test_support {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

// A running workload to look at.
class ProcSnapshotTest : public ::testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<TempDir> directory = TempDir::Create();
    ASSERT_TRUE(directory.ok()) << directory.status();
    directory_.emplace(*std::move(directory));
    StartOptions options;
    options.argv = {PREDUMP_WORKLOAD_DIR "/heart", "--report", directory_->File("report"),
                    "--size-mib=8", "--threads=2"};
    absl::StatusOr<ChildProcess> child = ChildProcess::Start(options);
    ASSERT_TRUE(child.ok()) << child.status();
    child_.emplace(*std::move(child));
    absl::StatusOr<ReportFile> report = ReportFile::Open(directory_->File("report"));
    ASSERT_TRUE(report.ok()) << report.status();
    report_.emplace(*std::move(report));
    ASSERT_TRUE(report_->WaitForProgress(100, absl::Seconds(10)).ok());
  }

  ProcSnapshot Take() {
    absl::StatusOr<ProcSnapshot> snapshot = ProcSnapshot::Take(child_->pid());
    EXPECT_TRUE(snapshot.ok()) << snapshot.status();
    return snapshot.ok() ? *std::move(snapshot) : ProcSnapshot();
  }

  std::optional<TempDir> directory_;
  std::optional<ChildProcess> child_;
  std::optional<ReportFile> report_;
};

TEST_F(ProcSnapshotTest, ARunningProcessThatChangesNothingShowsNoDifference) {
  const ProcSnapshot before = Take();
  ASSERT_TRUE(report_->WaitForProgress(500, absl::Seconds(10)).ok());
  EXPECT_THAT(before.Diff(Take(), {.ran_between = true}), IsEmpty());
  EXPECT_THAT(before.entries(), Not(IsEmpty()));
}

TEST_F(ProcSnapshotTest, HoldsEveryKindOfKey) {
  const ProcSnapshot snapshot = Take();
  const std::string pid = absl::StrCat(child_->pid());
  for (const std::string& key :
       {std::string("fd/0"), std::string("fdinfo/0/flags"), std::string("status/SigBlk"),
        std::string("status/TracerPid"), std::string("status/Threads"), std::string("timers"),
        absl::StrCat("task/", pid, "/children"), absl::StrCat("task/", pid, "/status/SigBlk"),
        std::string("link/exe"), std::string("auxv"), std::string("limits/Max open files")}) {
    EXPECT_TRUE(snapshot.entries().contains(key)) << key;
  }
  EXPECT_EQ(snapshot.entries().at("status/Threads"), "2");
  EXPECT_EQ(snapshot.entries().at("link/exe"), PREDUMP_WORKLOAD_DIR "/heart");
  size_t flags = 0;
  size_t maps = 0;
  for (const auto& [key, value] : snapshot.entries()) {
    flags += key.starts_with("vmflags/") ? 1 : 0;
    maps += key.starts_with("maps/") ? 1 : 0;
  }
  EXPECT_EQ(flags, maps);
}

TEST_F(ProcSnapshotTest, SeesATracer) {
  const ProcSnapshot before = Take();
  ASSERT_EQ(ptrace(PTRACE_SEIZE, child_->pid(), 0, 0), 0);
  const ProcSnapshot traced = Take();
  ASSERT_EQ(ptrace(PTRACE_INTERRUPT, child_->pid(), 0, 0), 0);
  ASSERT_EQ(waitpid(child_->pid(), nullptr, __WALL), child_->pid());
  const ProcSnapshot stopped = Take();
  ASSERT_EQ(ptrace(PTRACE_DETACH, child_->pid(), 0, 0), 0);
  const DiffOptions ran = {.ran_between = true};
  EXPECT_THAT(before.Diff(traced, ran), Contains(StartsWith("status/TracerPid: 0 -> ")));
  EXPECT_THAT(before.Diff(stopped, ran), Contains(HasSubstr("status/State: alive -> t")));
  EXPECT_THAT(before.Diff(Take(), ran), IsEmpty());
}

TEST_F(ProcSnapshotTest, SeesAChangedLimitAndCanBeToldToIgnoreIt) {
  const ProcSnapshot before = Take();
  rlimit limit;
  ASSERT_EQ(prlimit(child_->pid(), RLIMIT_NOFILE, nullptr, &limit), 0);
  limit.rlim_cur -= 1;
  ASSERT_EQ(prlimit(child_->pid(), RLIMIT_NOFILE, &limit, nullptr), 0);
  const ProcSnapshot after = Take();
  EXPECT_THAT(before.Diff(after, {.ran_between = true}),
              Contains(StartsWith("limits/Max open files")));
  EXPECT_THAT(before.Diff(after, {.ran_between = true, .ignored_prefixes = {"limits/"}}),
              IsEmpty());
}

TEST_F(ProcSnapshotTest, AnotherProcessOfTheSameProgramDiffersButNotOnlyByPid) {
  const ProcSnapshot one = Take();
  const absl::StatusOr<ProcSnapshot> self = ProcSnapshot::Take(getpid());
  ASSERT_TRUE(self.ok()) << self.status();
  EXPECT_THAT(one.Diff(*self, {.ran_between = true, .moved = true}),
              Contains(StartsWith("link/exe")));
}

TEST(ProcSnapshotOfSelfTest, SeesDescriptorsPositionsAndSignals) {
  absl::StatusOr<TempDir> directory = TempDir::Create();
  ASSERT_TRUE(directory.ok()) << directory.status();
  const auto take = [] { return *ProcSnapshot::Take(getpid()); };
  base::UniqueFd file(open(directory->File("file").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  const std::string number = absl::StrCat(file.get());

  const ProcSnapshot before = take();
  ASSERT_EQ(pwrite(file.get(), "abcdef", 6, 0), 6);
  ASSERT_EQ(lseek(file.get(), 3, SEEK_SET), 3);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR2);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  raise(SIGUSR2);
  const ProcSnapshot after = take();

  const DiffOptions strict = {.ignored_prefixes = {"maps/", "vmflags/"}};  // our own heap
  const std::vector<std::string> all = before.Diff(after, strict);
  EXPECT_THAT(all, Contains(absl::StrCat("fdinfo/", number, "/pos: 0 -> 3")));
  EXPECT_THAT(all, Contains(StartsWith("status/SigBlk")));
  EXPECT_THAT(all, Contains(HasSubstr("/SigPnd")));
  DiffOptions ran = strict;
  ran.ran_between = true;
  const std::vector<std::string> steady = before.Diff(after, ran);
  EXPECT_THAT(steady, Not(Contains(HasSubstr("/pos"))));
  EXPECT_THAT(steady, Not(Contains(HasSubstr("SigPnd"))));
  EXPECT_THAT(steady, Contains(StartsWith("status/SigBlk")));

  const timespec now = {0, 0};
  sigtimedwait(&set, nullptr, &now);
  sigprocmask(SIG_UNBLOCK, &set, nullptr);
  ASSERT_TRUE(file.Close().ok());
  EXPECT_THAT(before.Diff(take(), ran), Contains(StartsWith(absl::StrCat("fd/", number, ": "))));
}

TEST(ProcSnapshotOfNobodyTest, IsToldApart) {
  EXPECT_TRUE(base::IsTargetExited(ProcSnapshot::Take(0x3FFFFFFF).status()));
}

}  // namespace
}  // namespace predump::test_support
