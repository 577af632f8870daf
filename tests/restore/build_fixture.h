// The fixture of the tests that build a process: a child of the test to take apart, a landing with
// its memory, and descriptors to add to the state in between.
#ifndef PREDUMP_TESTS_RESTORE_BUILD_FIXTURE_H_
#define PREDUMP_TESTS_RESTORE_BUILD_FIXTURE_H_

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <optional>
#include <string>

#include "gtest/gtest.h"
#include "proto/state.pb.h"
#include "src/base/errors.h"
#include "src/base/unique_fd.h"
#include "src/kernel/process.h"
#include "src/restore/built_process.h"
#include "src/restore/landing.h"
#include "tests/restore/frame_source.h"
#include "tests/restore/snapshot.h"
#include "tests/support/temp_dir.h"

namespace predump::restore {

inline constexpr uint32_t kPid = 5000;
inline constexpr int kThreads = 8;

// What parent and child share, through a mapped file.
struct Report {
  std::atomic<uint64_t> beats[kThreads + 1];
  std::atomic<uint64_t> wrong;  // checks that failed
  std::atomic<int> signals[65];
  std::atomic<uint64_t> signal_value;
  std::atomic<pid_t> pid;
};

// What a signal handler is told by; set in the child.
extern Report* g_report;
// Notes a signal and its value there.
void Handler(int number, siginfo_t* info, void*);
// Counts, with values in vector registers and thread-local storage that must stay what they are.
void Beat(Report* report, int index);
void BeatAlone(Report* report);

class BuildTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto directory = test_support::TempDir::Create();
    ASSERT_TRUE(directory.ok()) << directory.status();
    directory_.emplace(*std::move(directory));
    const base::UniqueFd file(
        ::open(directory_->File("report").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    ASSERT_EQ(::ftruncate(file.get(), sizeof(Report)), 0);
    void* mapped =
        ::mmap(nullptr, sizeof(Report), PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
    ASSERT_NE(mapped, MAP_FAILED);
    report_ = new (mapped) Report{};
  }
  void TearDown() override {
    EndChild();
    landing_.reset();
    built_.reset();  // ends what was not released
    if (built_pid_ != 0) ::kill(built_pid_, SIGKILL);
    if (reaper_ != 0) ::waitpid(reaper_, nullptr, 0);
    ::munmap(report_, sizeof(Report));
  }

  // A child of this test without descriptors that runs `body`, and a landing with its memory.
  // `earlier_rounds` sends what the landing has before the memory comes.
  void Prepare(std::function<void(Report*)> body, LandingOptions options = {},
               const std::function<void()>& earlier_rounds = nullptr) {
    ASSERT_NO_FATAL_FAILURE(StartChild(body));
    auto process = kernel::ProcessHandle::Open(child_);
    ASSERT_TRUE(process.ok());
    options.pid = kPid;
    options.new_pid_namespace = true;
    options.data_socket = source_.TakeLandingEnd();
    auto landing = Landing::Start(std::move(options));
    ASSERT_TRUE(landing.ok()) << landing.status();
    landing_.emplace(*std::move(landing));
    if (earlier_rounds) earlier_rounds();
    auto state = TakeSnapshot(*process, kPid, source_);
    ASSERT_TRUE(state.ok()) << state.status() << "; " << Fate();
    state_ = *std::move(state);
    ASSERT_TRUE(landing_->WaitForFinal(absl::Now() + absl::Seconds(10), -1).ok());
    EndChild();
  }
  void StartChild(const std::function<void(Report*)>& body) {
    child_ = ::fork();
    ASSERT_GE(child_, 0);
    if (child_ == 0) {
      ::syscall(SYS_close_range, 0u, ~0u, 0u);
      g_report = report_;
      body(report_);
      ::_exit(0);
    }
    const absl::Time limit = absl::Now() + absl::Seconds(10);
    while (report_->beats[0] == 0 && absl::Now() < limit) ::usleep(100);
  }
  std::string Fate() {
    return landing_->WaitForFinal(absl::Now() + absl::Seconds(1), -1).ToString();
  }
  void EndChild() {
    if (child_ <= 0) return;
    ::kill(child_, SIGKILL);
    ::waitpid(child_, nullptr, 0);
    child_ = 0;
  }

  absl::Status Build() {
    landing_pid_ = landing_->outer_pid();
    auto built = (*std::move(landing_)).Build(state_);
    landing_.reset();
    if (!built.ok()) return built.status();
    built_.emplace(*std::move(built));
    reaper_ = built_->reaper_pid();
    return absl::OkStatus();
  }
  absl::Status Release() {
    PREDUMP_RETURN_IF_ERROR(built_->QueueStop());
    PREDUMP_RETURN_IF_ERROR(built_->ClearExitKill());
    built_pid_ = built_->pid();
    return (*std::move(built_)).Release();
  }
  kernel::ProcessHandle Process() {
    auto process = kernel::ProcessHandle::Open(landing_pid_);
    EXPECT_TRUE(process.ok()) << process.status();
    return *std::move(process);
  }
  // A duplicate of a descriptor of what was built.
  base::UniqueFd Descriptor(int fd) {
    auto duplicate = Process().GetDescriptor(fd);
    EXPECT_TRUE(duplicate.ok()) << fd << ": " << duplicate.status();
    return duplicate.ok() ? *std::move(duplicate) : base::UniqueFd();
  }
  void ExpectNothingLeft() {
    EXPECT_FALSE(kernel::ProcessHandle::Open(landing_pid_).ok());
    EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1);
    EXPECT_EQ(errno, ECHILD);
  }
  bool Beats(int index) {
    const uint64_t before = report_->beats[index];
    const absl::Time limit = absl::Now() + absl::Seconds(10);
    while (report_->beats[index] < before + 1000) {
      if (absl::Now() > limit) return false;
      ::usleep(200);
    }
    return true;
  }

  FrameSource source_;
  std::optional<test_support::TempDir> directory_;
  Report* report_ = nullptr;
  pid_t child_ = 0;
  pid_t landing_pid_ = 0;
  pid_t built_pid_ = 0;
  pid_t reaper_ = 0;
  std::optional<Landing> landing_;
  std::optional<BuiltProcess> built_;
  proto::ProcessState state_;
};

// Descriptors for the state.
criu::file_entry InetSocket(uint32_t type, uint32_t state, uint32_t port);
criu::file_entry UnixSocket(uint32_t inode, uint32_t state, uint32_t peer,
                            const std::string& name = "");
criu::file_entry PipeEnd(uint32_t pipe, uint32_t flags);
// A port that nobody has at the moment.
uint32_t FreePort(int type);
// What one read(2) gives, "errno N" for an error.
std::string ReadSome(int fd);

}  // namespace predump::restore

#endif  // PREDUMP_TESTS_RESTORE_BUILD_FIXTURE_H_
