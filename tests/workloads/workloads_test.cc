// Every workload runs alone without finding fault, and every judge can find one.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "src/base/unique_fd.h"
#include "tests/support/temp_dir.h"
#include "tests/support/workload_process.h"

namespace predump::test_support {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kLong = absl::Seconds(30);
// Where lateness is not what is asked for: a busy machine may keep any program waiting.
constexpr char kMayBeLate[] = "--late-ms=20000";

struct Run {
  std::string test_name;
  std::string program;
  std::vector<std::string> options = {};
};

void PrintTo(const Run& run, std::ostream* out) { *out << run.test_name; }

std::string NameOf(const ::testing::TestParamInfo<Run>& info) { return info.param.test_name; }

class WorkloadTest : public ::testing::TestWithParam<Run> {
 protected:
  void SetUp() override {
    absl::StatusOr<TempDir> directory = TempDir::Create();
    ASSERT_TRUE(directory.ok()) << directory.status();
    directory_.emplace(*std::move(directory));
    ASSERT_EQ(chmod(directory_->path().c_str(), 0755), 0);  // for those who give up root
  }

  absl::StatusOr<WorkloadProcess> Start(const std::string& program,
                                        const std::vector<std::string>& options = {}) {
    return WorkloadProcess::Start(program, report_path(), options);
  }
  std::string report_path() const { return directory_->File("report"); }

  std::optional<TempDir> directory_;
};

// The program may be about to write to the same place, and then knows nothing of what was there.
absl::Status SpoilUntilNoticed(WorkloadProcess& workload, const std::function<void()>& spoil) {
  absl::Status noticed;
  const absl::Time limit = absl::Now() + kLong;
  do {
    spoil();
    noticed = workload.report().WaitForErrors(1, absl::Seconds(2));
  } while (!noticed.ok() && absl::Now() < limit);
  return noticed;
}

using AloneTest = WorkloadTest;

TEST_P(AloneTest, MakesProgressAndFindsNoFault) {
  absl::StatusOr<WorkloadProcess> workload = Start(GetParam().program, GetParam().options);
  ASSERT_TRUE(workload.ok()) << workload.status();
  EXPECT_EQ(workload->report().report().pid, workload->pid());
  ASSERT_TRUE(workload->report().WaitForProgress(3, kLong).ok());
  const absl::StatusOr<ExitStatus> ended = workload->child().Wait(absl::Milliseconds(1200));
  EXPECT_EQ(ended.status().code(), absl::StatusCode::kDeadlineExceeded) << "it ended by itself";
  const absl::Status verdict = workload->StopAndJudge();
  EXPECT_TRUE(verdict.ok()) << verdict;
}

INSTANTIATE_TEST_SUITE_P(
    All, AloneTest,
    ::testing::Values(
        Run{"Heart", "heart"},
        Run{"HeartSequentialThreads",
            "heart",
            {"--threads=3", "--pattern=sequential", "--dirty-pages-per-second=50000"}},
        Run{"HeartOnlyReading", "heart", {"--dirty-pages-per-second=0"}},
        Run{"Threads", "threads", {kMayBeLate}},
        Run{"ThreadsAlone", "threads", {"--threads=1", kMayBeLate}},
        Run{"ThreadsInLongSequences",
            "threads",
            {"--rseq-spins=100000", "--rseq-pause-us=0", "--no-blocking", kMayBeLate}},
        Run{"Churn", "churn"}, Run{"ChurnOtherSeed", "churn", {"--seed=2"}},
        Run{"Files", "files", {"--cycle=20", kMayBeLate}},
        Run{"FilesOfAnotherUser", "files", {"--uid=4321", "--no-new-privs", kMayBeLate}},
        Run{"DirectIo", "direct-io"}, Run{"VforkParent", "vfork-parent"},
        Run{"HighAddress",
            "high-address",
            {"--address=0x10000000,0x500000000000", "--size-kib=128"}},
        Run{"Huge", "huge"}, Run{"Sparse", "sparse"},
        Run{"Eintr", "eintr", {"--timeout-ms=50", kMayBeLate}},
        Run{"PythonCounter", "python-counter.py"}),
    NameOf);

using CorruptionTest = WorkloadTest;

TEST_P(CorruptionTest, IsNoticed) {
  absl::StatusOr<WorkloadProcess> workload = Start(GetParam().program, GetParam().options);
  ASSERT_TRUE(workload.ok()) << workload.status();
  ASSERT_EQ(workload->report().errors(), 0U);
  const absl::Status noticed =
      SpoilUntilNoticed(*workload, [&] { ASSERT_TRUE(workload->CorruptPages(1).ok()); });
  EXPECT_TRUE(noticed.ok()) << noticed;
  EXPECT_FALSE(workload->StopAndJudge().ok());
  EXPECT_EQ(workload->report().report().exit_code, 1U);
}

INSTANTIATE_TEST_SUITE_P(
    All, CorruptionTest,
    ::testing::Values(Run{"Heart", "heart", {"--size-mib=2"}},
                      Run{"Threads", "threads", {"--memory-kib=256", kMayBeLate}},
                      Run{"Churn", "churn", {"--region-pages=256"}},
                      Run{"Files", "files", {kMayBeLate}},
                      Run{"VforkParent", "vfork-parent", {"--vfork-ms=5", "--pause-ms=1"}},
                      Run{"HighAddress", "high-address"}, Run{"Huge", "huge", {"--size-mib=4"}},
                      Run{"Sparse", "sparse", {"--islands=4"}}),
    NameOf);

using StraySignalTest = WorkloadTest;

TEST_P(StraySignalTest, IsCountedAsEintr) {
  absl::StatusOr<WorkloadProcess> workload = Start(GetParam().program, GetParam().options);
  ASSERT_TRUE(workload.ok()) << workload.status();
  // One may arrive between two calls, of which a busy program makes few.
  const absl::Time limit = absl::Now() + kLong;
  while (workload->report().eintr() == 0 && absl::Now() < limit) {
    ASSERT_TRUE(workload->child().Signal(SIGUSR1).ok());
    workload->report().WaitForEintr(1, absl::Milliseconds(3)).IgnoreError();
  }
  EXPECT_GE(workload->report().eintr(), 1U);
  EXPECT_GE(workload->report().report().stray_signals, 1U);
  const absl::Status verdict = workload->StopAndJudge();
  EXPECT_THAT(verdict.message(), HasSubstr("EINTR"));
}

INSTANTIATE_TEST_SUITE_P(All, StraySignalTest,
                         ::testing::Values(Run{"Heart", "heart"},
                                           Run{"Threads", "threads", {kMayBeLate}},
                                           // At a pace at which it has to wait on any machine.
                                           Run{"Churn", "churn", {"--pages-per-second=2000"}},
                                           Run{"Files", "files", {kMayBeLate}}),
                         NameOf);

// Each blocking call by itself, the names asked from the program.
TEST_F(WorkloadTest, EveryBlockingCallShowsEintrAndOnlyAfterASignal) {
  const absl::StatusOr<CommandResult> list = RunCommand({WorkloadPath("eintr"), "--list"});
  ASSERT_TRUE(list.ok()) << list.status();
  std::vector<WorkloadProcess> workloads;
  std::vector<std::string> names = absl::StrSplit(list->output, '\n', absl::SkipEmpty());
  ASSERT_GT(names.size(), 20U);
  for (std::string& name : names) {
    name.erase(name.find(' '));  // the kind
    absl::StatusOr<WorkloadProcess> workload = WorkloadProcess::Start(
        "eintr", directory_->File(name), {"--call", name, "--timeout-ms=100", kMayBeLate});
    ASSERT_TRUE(workload.ok()) << name << workload.status();
    workloads.push_back(*std::move(workload));
  }
  for (WorkloadProcess& workload : workloads) {
    EXPECT_TRUE(workload.report().Health().ok()) << workload.report().Health();
  }
  for (size_t i = 0; i < names.size(); ++i) {
    WorkloadProcess& workload = workloads[i];
    for (int k = 0; k < 200 && workload.report().eintr() == 0; ++k) {
      ASSERT_TRUE(workload.child().Signal(SIGUSR1).ok());
      workload.report().WaitForEintr(1, absl::Milliseconds(20)).IgnoreError();
    }
    EXPECT_GE(workload.report().eintr(), 1U) << names[i];
    const absl::StatusOr<ExitStatus> ended = workload.child().Terminate(kLong);
    ASSERT_TRUE(ended.ok()) << names[i] << ended.status();
    EXPECT_EQ(ended->code, 1) << names[i];
  }
}

TEST_F(WorkloadTest, AStopShowsInTheGapAndResetForgetsIt) {
  absl::StatusOr<WorkloadProcess> heart = Start("heart");
  ASSERT_TRUE(heart.ok()) << heart.status();
  ASSERT_TRUE(heart->report().ResetGap(kLong).ok());
  ASSERT_TRUE(heart->report().WaitForProgress(100, kLong).ok());
  ASSERT_TRUE(heart->child().Signal(SIGSTOP).ok());
  absl::SleepFor(absl::Milliseconds(400));
  ASSERT_TRUE(heart->child().Signal(SIGCONT).ok());
  ASSERT_TRUE(heart->report().WaitForProgress(100, kLong).ok());
  EXPECT_GE(heart->report().LongestGap(), absl::Milliseconds(400));
  absl::Duration without_a_stop = absl::InfiniteDuration();
  for (int tries = 0; tries < 10 && without_a_stop >= absl::Milliseconds(400); ++tries) {
    ASSERT_TRUE(heart->report().ResetGap(kLong).ok());
    ASSERT_TRUE(heart->report().WaitForProgress(100, kLong).ok());
    without_a_stop = heart->report().LongestGap();
  }
  EXPECT_LT(without_a_stop, absl::Milliseconds(400))
      << "ten times, of which any may be kept waiting";
  EXPECT_GE(heart->report().report().longest_gap_ns, 400'000'000U);
  EXPECT_TRUE(heart->StopAndJudge().ok());
}

TEST_F(WorkloadTest, ALongStopMakesTimedCallsLate) {
  absl::StatusOr<WorkloadProcess> threads = Start("threads", {"--late-ms=200"});
  ASSERT_TRUE(threads.ok()) << threads.status();
  ASSERT_TRUE(threads->child().Signal(SIGSTOP).ok());
  absl::SleepFor(absl::Seconds(1));
  ASSERT_TRUE(threads->child().Signal(SIGCONT).ok());
  EXPECT_TRUE(threads->report().WaitForErrors(1, kLong).ok());
}

TEST_F(WorkloadTest, ALostRestartableSequenceIsNoticed) {
  absl::StatusOr<WorkloadProcess> threads = Start("threads", {"--no-blocking", kMayBeLate});
  ASSERT_TRUE(threads.ok()) << threads.status();
  const absl::StatusOr<uint64_t> address = threads->report().CounterValue("rseq_counts_start");
  ASSERT_TRUE(address.ok()) << address.status();
  const base::UniqueFd memory(
      open(absl::StrCat("/proc/", threads->pid(), "/mem").c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(memory.valid());
  const absl::Status noticed = SpoilUntilNoticed(*threads, [&] {
    const uint64_t lost = 1;
    ASSERT_EQ(pwrite(memory.get(), &lost, sizeof lost, static_cast<off_t>(*address)),
              static_cast<ssize_t>(sizeof lost));
  });
  EXPECT_TRUE(noticed.ok()) << noticed;
  EXPECT_THAT(threads->report().FirstError(), HasSubstr("rseq"));
}

TEST_F(WorkloadTest, MemoryOlderThanTheReportIsNoticed) {
  absl::StatusOr<WorkloadProcess> heart = Start("heart", {"--size-mib=1"});
  ASSERT_TRUE(heart.ok()) << heart.status();
  // As if the process went on from memory one beat old.
  const base::UniqueFd file(open(report_path().c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(file.valid());
  const uint64_t ahead = uint64_t{1} << 40;
  ASSERT_EQ(pwrite(file.get(), &ahead, sizeof ahead, offsetof(workloads::Report, witnesses)),
            static_cast<ssize_t>(sizeof ahead));
  EXPECT_TRUE(heart->report().WaitForErrors(1, kLong).ok());
  EXPECT_THAT(heart->report().FirstError(), HasSubstr("private memory counts"));
}

TEST_F(WorkloadTest, AProgramStartedAnewOverItsReportIsNoticed) {
  ASSERT_TRUE(Start("heart", {"--size-mib=1"}).ok());  // killed at once
  absl::StatusOr<WorkloadProcess> again = Start("heart", {"--size-mib=1"});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->report().report().restarts, 1U);
  EXPECT_FALSE(again->report().Health().ok());
}

TEST_F(WorkloadTest, ChurnDoesAllItClaims) {
  absl::StatusOr<WorkloadProcess> churn = Start("churn");
  ASSERT_TRUE(churn.ok()) << churn.status();
  ASSERT_TRUE(churn->report().WaitForProgress(4000, kLong).ok());
  for (const char* name :
       {"maps", "moves", "merges", "discards", "protects", "deepest_stack_pages"}) {
    const absl::StatusOr<uint64_t> count = churn->report().CounterValue(name);
    ASSERT_TRUE(count.ok()) << count.status();
    EXPECT_GT(*count, 0U) << name;
  }
  const absl::Status verdict = churn->StopAndJudge();
  EXPECT_TRUE(verdict.ok()) << verdict;
}

TEST_F(WorkloadTest, DirectIoNoticesAWrongFile) {
  absl::StatusOr<WorkloadProcess> workload = Start("direct-io", {"--file-mib=1"});
  ASSERT_TRUE(workload.ok()) << workload.status();
  const base::UniqueFd file(
      open(absl::StrCat(report_path(), ".direct").c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(file.valid());
  ASSERT_EQ(pwrite(file.get(), "wrong", 5, 70'000), 5);
  EXPECT_TRUE(workload->report().WaitForErrors(1, kLong).ok());
  EXPECT_FALSE(workload->StopAndJudge().ok());
}

TEST_F(WorkloadTest, PythonCounterNoticesALostLine) {
  absl::StatusOr<WorkloadProcess> counter = Start("python-counter.py");
  ASSERT_TRUE(counter.ok()) << counter.status();
  ASSERT_TRUE(counter->report().WaitForProgress(1000, kLong).ok());
  const base::UniqueFd file(
      open(absl::StrCat(report_path(), ".lines").c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(file.valid());
  ASSERT_EQ(pwrite(file.get(), "9", 1, 20), 1);
  EXPECT_FALSE(counter->StopAndJudge().ok());
  EXPECT_THAT(counter->report().FirstError(), HasSubstr("holds"));
}

TEST_F(WorkloadTest, WorkloadsEndThemselvesAfterTheirLifetime) {
  absl::StatusOr<WorkloadProcess> heart = Start("heart", {"--size-mib=1", "--max-seconds=3"});
  ASSERT_TRUE(heart.ok()) << heart.status();
  const absl::StatusOr<ExitStatus> ended = heart->child().Wait(kLong);
  ASSERT_TRUE(ended.ok()) << ended.status();
  EXPECT_EQ(ended->code, 1);
  EXPECT_EQ(*heart->report().WaitForVerdict(kLong), 1);
}

TEST_F(WorkloadTest, WrongOptionsAreRefused) {
  for (const std::vector<std::string>& options :
       std::vector<std::vector<std::string>>{{},
                                             {"--report", report_path(), "--no-such-option"},
                                             {"--report", report_path(), "--size-mib=many"},
                                             {"--report", report_path(), "--threads=0"},
                                             {"--report"}}) {
    std::vector<std::string> command = {WorkloadPath("heart")};
    command.insert(command.end(), options.begin(), options.end());
    const absl::StatusOr<CommandResult> result = RunCommand(command);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->exit.code, 2) << result->errors;
    EXPECT_THAT(result->errors, HasSubstr("heart: "));
  }
}

TEST_F(WorkloadTest, TheReportIsPrintedAsLinesAndAsJson) {
  absl::StatusOr<WorkloadProcess> heart = Start("heart", {"--size-mib=1"});
  ASSERT_TRUE(heart.ok()) << heart.status();
  const absl::StatusOr<CommandResult> lines =
      RunCommand({WorkloadPath("workload-report"), report_path()});
  ASSERT_TRUE(lines.ok()) << lines.status();
  EXPECT_THAT(lines->output, HasSubstr("name=heart\n"));
  EXPECT_THAT(lines->output, HasSubstr("errors=0\n"));
  EXPECT_THAT(lines->output, HasSubstr("memory_bytes=1048576\n"));
  const absl::StatusOr<CommandResult> json = RunCommand(
      {"sh", "-c",
       absl::StrCat(WorkloadPath("workload-report"), " --json ", report_path(),
                    " | python3 -c 'import json, sys; print(json.load(sys.stdin)[\"pid\"])'")});
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_EQ(json->output, absl::StrCat(heart->pid(), "\n")) << json->errors;
  EXPECT_FALSE(RunCommand({WorkloadPath("workload-report"), "/dev/null"})->exit.ok());
}

TEST_F(WorkloadTest, CompressibleFilesAreTheSameFromTheSameSeed) {
  const auto make = [&](const char* name, const char* seed) {
    const absl::StatusOr<CommandResult> made =
        RunCommand({WorkloadPath("make-compressible"), directory_->File(name), "4", seed});
    EXPECT_TRUE(made.ok() && made->exit.ok());
    const absl::StatusOr<CommandResult> sum =
        RunCommand({"sh", "-c", absl::StrCat("sha256sum < ", directory_->File(name))});
    return sum.ok() ? sum->output : sum.status().ToString();
  };
  const std::string first = make("first", "5");
  EXPECT_EQ(make("second", "5"), first);
  EXPECT_NE(make("third", "6"), first);
  const absl::StatusOr<CommandResult> packed =
      RunCommand({"sh", "-c", absl::StrCat("gzip -c ", directory_->File("first"), " | wc -c")});
  ASSERT_TRUE(packed.ok()) << packed.status();
  const int bytes = atoi(packed->output.c_str());
  EXPECT_GT(bytes, 4 << 17);
  EXPECT_LT(bytes, 4 << 19);
}

}  // namespace
}  // namespace predump::test_support
