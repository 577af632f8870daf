#include "src/kernel/remote_batch.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include <cstring>
#include <span>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/errors.h"
#include "tests/kernel/child_process.h"

namespace predump::kernel {
namespace {

constexpr size_t kRegion = 64 << 10;

// A stopped child with all signals blocked and a region it shares with us at the same address.
class RemoteBatchTest : public testing::Test {
 protected:
  void SetUp() override {
    region_ = ::mmap(nullptr, kRegion, PROT_READ | PROT_WRITE | PROT_EXEC,
                     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    child_.emplace([] {
      for (;;) ::pause();
    });
    auto tracee = Tracee::Seize(child_->pid(), PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD);
    ASSERT_TRUE(tracee.ok()) << tracee.status();
    tracee_.emplace(*std::move(tracee));
    ASSERT_TRUE(tracee_->Interrupt().ok());
    ASSERT_TRUE(tracee_->WaitForEventStop(absl::Seconds(2)).ok());
    ASSERT_TRUE(tracee_->SetSignalMask(~0ull).ok());
    batch_.emplace(*RemoteBatch::Create(base::RemoteAddress(reinterpret_cast<uint64_t>(region_)),
                                        {static_cast<std::byte*>(region_), kRegion}, 16));
  }
  void TearDown() override {
    tracee_.reset();
    child_.reset();
    ::munmap(region_, kRegion);
  }
  absl::Status Run() {
    return batch_->Run(*tracee_, child_->pid(), child_->pid(), absl::Seconds(5));
  }

  void* region_ = nullptr;
  std::optional<ChildProcess> child_;
  std::optional<Tracee> tracee_;
  std::optional<RemoteBatch> batch_;
};

TEST_F(RemoteBatchTest, RunsCallsInOrderAndGivesTheirResults) {
  const auto pid = batch_->Add(SYS_getpid, {}, "getpid");
  const auto path = batch_->AddString("/dev/null");
  const auto fd = batch_->Add(SYS_openat, {AT_FDCWD, *path, O_WRONLY}, "open /dev/null");
  const auto bytes = batch_->AddString("hello");
  const auto written =
      batch_->Add(SYS_write, {RemoteBatch::ResultOf{*fd}, *bytes, 5}, "write to it");
  const auto closed = batch_->Add(SYS_close, {RemoteBatch::ResultOf{*fd}}, "close it");
  const auto status = Run();
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(batch_->Result(*pid), child_->pid());
  EXPECT_GE(batch_->Result(*fd), 0);
  EXPECT_EQ(batch_->Result(*written), 5);
  EXPECT_EQ(batch_->Result(*closed), 0);
}

TEST_F(RemoteBatchTest, FailedCallStopsTheLoopAndIsNamed) {
  const auto path = batch_->AddString("/no/such/file");
  ASSERT_TRUE(batch_->Add(SYS_openat, {AT_FDCWD, *path, O_RDONLY}, "open fd 7").ok());
  const auto made = batch_->Allocate(8);
  ASSERT_TRUE(batch_->Add(SYS_pipe2, {*made, 0}, "make a pipe").ok());
  const auto status = Run();
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("open fd 7: No such file"));
  EXPECT_EQ(base::ErrnoOf(status), ENOENT);
  int ends[2];
  memcpy(ends, batch_->View(*made, sizeof ends).data(), sizeof ends);
  EXPECT_EQ(ends[1], 0) << "the call after the failed one ran";
}

TEST_F(RemoteBatchTest, ToleratedFailureIsAResult) {
  const auto bad = batch_->Add(SYS_close, {-1}, "close nothing", RemoteBatch::OnError::kContinue);
  const auto pid = batch_->Add(SYS_getpid, {}, "getpid");
  const auto status = Run();
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(batch_->Result(*bad), -EBADF);
  EXPECT_EQ(batch_->Result(*pid), child_->pid());
}

TEST_F(RemoteBatchTest, RunsAgainAfterClearAndWithNothing) {
  ASSERT_TRUE(Run().ok());
  for (int i = 0; i < 10; ++i) {
    batch_->Clear();
    const auto pid = batch_->Add(SYS_getpid, {}, "getpid");
    const auto status = Run();
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_EQ(batch_->Result(*pid), child_->pid());
  }
}

TEST_F(RemoteBatchTest, AllSixArgumentsArrive) {
  const auto mapped = batch_->Add(
      SYS_mmap, {0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0}, "map");
  const auto again = batch_->Add(SYS_mremap, {RemoteBatch::ResultOf{*mapped}, 8192, 4096, 0, 0, 0},
                                 "shrink the mapping");
  const auto status = Run();
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(batch_->Result(*again), batch_->Result(*mapped));
}

TEST_F(RemoteBatchTest, FullTableAndFullDataAreErrors) {
  for (int i = 0; i < 16; ++i) ASSERT_TRUE(batch_->Add(SYS_getpid, {}, "getpid").ok());
  EXPECT_EQ(batch_->Add(SYS_getpid, {}, "one more").status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(batch_->Allocate(kRegion).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(batch_->Allocate(1000).ok());
  std::byte small[128];
  EXPECT_EQ(RemoteBatch::Create(base::RemoteAddress(0), small, 16).status().code(),
            absl::StatusCode::kInvalidArgument);
}

// DESIGN 12.7: a batch that ended with a breakpoint would set an ignored or blocked SIGTRAP back to
// its default.
TEST_F(RemoteBatchTest, AnIgnoredSigtrapStaysIgnored) {
  const struct { uint64_t handler, flags, restorer, mask; } ignore = {1 /* SIG_IGN */, 0, 0, 0};
  const auto action = batch_->AddBytes(std::as_bytes(std::span(&ignore, 1)), 8);
  ASSERT_TRUE(action.ok());
  ASSERT_TRUE(batch_->Add(SYS_rt_sigaction, {SIGTRAP, *action, 0, 8}, "ignore SIGTRAP").ok());
  const auto status = Run();
  ASSERT_TRUE(status.ok()) << status;
  batch_->Clear();
  const auto before = batch_->Allocate(sizeof ignore, 8);
  ASSERT_TRUE(batch_->Add(SYS_rt_sigaction, {SIGTRAP, 0, *before, 8}, "look").ok());
  ASSERT_TRUE(Run().ok());
  uint64_t handler = 0;
  memcpy(&handler, batch_->View(*before, sizeof handler).data(), sizeof handler);
  EXPECT_EQ(handler, ignore.handler);
  EXPECT_EQ(*tracee_->GetSignalMask() >> (SIGTRAP - 1) & 1, 1u);
}

TEST_F(RemoteBatchTest, StopOfTheLoopIsDroppedAtDetach) {
  ASSERT_TRUE(batch_->Add(SYS_getpid, {}, "getpid").ok());
  const auto before = tracee_->GetRegisters();
  ASSERT_TRUE(Run().ok());
  ASSERT_TRUE(tracee_->SetRegisters(*before).ok());
  ASSERT_TRUE(tracee_->SetSignalMask(0).ok());
  ASSERT_TRUE(std::move(*tracee_).Detach().ok());
  SleepMs(2);
  EXPECT_EQ(::waitpid(child_->pid(), nullptr, WUNTRACED | WNOHANG), 0);
}

}  // namespace
}  // namespace predump::kernel
