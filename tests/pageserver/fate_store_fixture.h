// A store of fates, and a landing whose fate is decided.
#ifndef PREDUMP_TESTS_PAGESERVER_FATE_STORE_FIXTURE_H_
#define PREDUMP_TESTS_PAGESERVER_FATE_STORE_FIXTURE_H_

#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "src/base/atomic_file.h"
#include "src/base/clock.h"
#include "src/base/mapped_region.h"
#include "src/base/unique_fd.h"
#include "src/kernel/process.h"
#include "src/pageserver/fate_store.h"
#include "tests/support/temp_dir.h"

namespace predump::pageserver {

inline constexpr char kId[] = "0123456789abcdef";

// A process that counts, in place of a restored one. Dies with the test.
class CountingProcess {
 public:
  CountingProcess() {
    const base::UniqueFd memory(::memfd_create("counter", MFD_CLOEXEC));
    EXPECT_EQ(::ftruncate(memory.get(), 4096), 0);
    counter_ = *base::MappedRegion::Shared(memory.get(), 0, 4096, PROT_READ | PROT_WRITE);
  }
  ~CountingProcess() { Kill(); }
  CountingProcess(const CountingProcess&) = delete;
  CountingProcess& operator=(const CountingProcess&) = delete;

  void Start() {
    pid_ = ::fork();
    ASSERT_GE(pid_, 0);
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      for (;;) {
        counter().fetch_add(1);
        ::poll(nullptr, 0, 1);
      }
    }
    ASSERT_TRUE(Counts());
  }

  void Stop() const {
    ASSERT_EQ(::kill(pid_, SIGSTOP), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(pid_, &status, WUNTRACED), pid_);
    ASSERT_TRUE(WIFSTOPPED(status));
  }

  void Kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }

  // Whether it makes a step within two seconds.
  bool Counts() {
    const uint64_t before = counter().load();
    const base::Stopwatch watch;
    while (watch.Elapsed() < absl::Seconds(2)) {
      if (counter().load() != before) return true;
      ::poll(nullptr, 0, 1);
    }
    return false;
  }

  pid_t pid() const { return pid_; }
  LandingIdentity identity() const {
    return *LandingIdentity::Of(*kernel::ProcessHandle::Open(pid_));
  }

 private:
  std::atomic<uint64_t>& counter() {
    return *reinterpret_cast<std::atomic<uint64_t>*>(counter_.data());
  }

  base::MappedRegion counter_;
  pid_t pid_ = 0;
};

class FateStoreTest : public ::testing::Test {
 protected:
  void SetUp() override { landing_.Start(); }

  FateStore Open() { return *FateStore::Open(directory_.path()); }

  std::string RecordPath() const {
    return absl::StrCat(directory_.path(), "/target/", absl::BytesToHexString(kId));
  }
  FateRecord Record() { return *FateRecord::Parse(*base::ReadWholeFile(RecordPath())); }
  bool HasRecord() { return ::access(RecordPath().c_str(), F_OK) == 0; }

  // Leaves the session in `state`, as a session process that died there does.
  void LeaveIn(FateState state, bool resumed = false) {
    FateStore store = Open();
    const LiveSession live = *store.BeginSession(kId);
    if (state == FateState::kDestroyed) {
      ASSERT_TRUE(store.Destroy(live).ok());
    }
    if (state == FateState::kCommitted || state == FateState::kReleased) {
      ASSERT_TRUE(store.Commit(live, landing_.identity()).ok());
    }
    if (state == FateState::kReleased) {
      ASSERT_TRUE(store.Release(live).ok());
    }
    if (resumed) {
      ASSERT_TRUE(store.Resumed(live).ok());
    }
    ASSERT_EQ(Record().state, state);
  }

  Outcome Decided() {
    const absl::StatusOr<Fate> fate = Open().Decide(kId);
    EXPECT_TRUE(fate.ok()) << fate.status();
    return fate.ok() ? fate->outcome : Outcome::kPending;
  }

  test_support::TempDir directory_ = *test_support::TempDir::Create();
  CountingProcess landing_;
};

}  // namespace predump::pageserver

#endif  // PREDUMP_TESTS_PAGESERVER_FATE_STORE_FIXTURE_H_
