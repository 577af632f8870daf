// The target's half of the handover with a real landing: what runs, and what is on record, after
// everything that can happen to source, session and server.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "src/base/mapped_region.h"
#include "src/kernel/process.h"
#include "src/pagemap/page_hash.h"
#include "tests/pageserver/handmade_process.h"
#include "tests/pageserver/server_process.h"
#include "tests/support/temp_dir.h"

namespace predump::pageserver {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

class HandoverTest : public ::testing::Test {
 protected:
  void SetUp() override {
    server_ = ServerProcess::Start(Options());
    pid_ = FreePid();
  }
  void TearDown() override { EndProcess(); }

  ServerOptions Options() const {
    ServerOptions options;
    options.listen = *transport::Address::Parse("127.0.0.1:0");
    options.state_directory = directory_.path();
    return options;
  }

  void EndProcess() {
    if (::kill(pid_, SIGKILL) != 0) return;
    EXPECT_TRUE(WaitForProcess(pid_, false));
  }

  // Sends the page and the state; returns what the server answers.
  absl::StatusOr<proto::Ready> BringToReady(FakeSource& source) {
    const absl::StatusOr<proto::BeginReply> reply = source.Begin(source.MakeBegin(pid_));
    if (!reply.ok()) return reply.status();
    EXPECT_EQ(reply->blockers_size(), 0) << reply->DebugString();
    source.OpenData(reply->data_token());
    transport::MapRecord map = {};
    map.start = kCountingPage;
    map.bytes = 4096;
    map.prot = 7;
    EXPECT_TRUE(source.data().Map(map, "").ok());
    const std::vector<transport::WireExtent> pages = {{kCountingPage, 4096}};
    EXPECT_TRUE(source.data().PagesHeader(pages).ok());
    const std::string page = CountingPage();
    EXPECT_EQ(::write(source.data().fd(), page.data(), page.size()), 4096);
    EXPECT_TRUE(source.data().Final(0).ok());
    proto::Prepare prepare;
    *prepare.mutable_state() = HandmadeState(pid_);
    prepare.set_final_round(0);
    const absl::Status sent = source.control().Send(proto::CONTROL_PREPARE, prepare, Soon());
    if (!sent.ok()) return sent;
    return source.control().Expect<proto::Ready>(proto::CONTROL_READY, Soon());
  }

  absl::Status SendCommit(FakeSource& source) {
    proto::Commit commit;
    commit.set_session_id(source.session_id());
    return source.control().Send(proto::CONTROL_COMMIT, commit, Soon());
  }

  absl::StatusOr<proto::Running> Commit(FakeSource& source) {
    const absl::Status sent = SendCommit(source);
    if (!sent.ok()) return sent;
    return source.control().Expect<proto::Running>(proto::CONTROL_RUNNING, Soon());
  }

  // As a source that was left without an answer does: asks until the answer is final.
  proto::Fate::Outcome FinalFate(const std::string& session_id) {
    FakeSource asking(server_->address());
    for (int i = 0; i < 1000; ++i) {
      const absl::StatusOr<proto::Fate> fate = asking.AskFate(session_id);
      EXPECT_TRUE(fate.ok()) << fate.status();
      if (!fate.ok() || fate->outcome() != proto::Fate::PENDING) {
        return fate.ok() ? fate->outcome() : proto::Fate::UNKNOWN;
      }
      ::poll(nullptr, 0, 10);
    }
    return proto::Fate::PENDING;
  }

  // Exactly one copy: the fate says who may run, and the process here agrees with it.
  void ExpectOneTruth(const std::string& session_id) {
    const proto::Fate::Outcome outcome = FinalFate(session_id);
    if (outcome == proto::Fate::RUNNING) {
      EXPECT_TRUE(Counts(pid_));
    } else {
      EXPECT_EQ(outcome, proto::Fate::DESTROYED);
      EXPECT_TRUE(WaitForProcess(pid_, false));
    }
    EXPECT_EQ(FinalFate(session_id), outcome);
  }

  test_support::TempDir directory_ = *test_support::TempDir::Create();
  std::unique_ptr<ServerProcess> server_;
  pid_t pid_ = 0;
};

TEST_F(HandoverTest, ProcessRunsAfterCommitAndNotBefore) {
  FakeSource source(server_->address());
  const absl::StatusOr<proto::Ready> ready = BringToReady(source);
  ASSERT_TRUE(ready.ok()) << ready.status();
  EXPECT_EQ(ready->restored_pid(), static_cast<uint32_t>(pid_));
  EXPECT_GT(ready->phases_size(), 0);
  EXPECT_FALSE(Counts(pid_));
  const absl::StatusOr<proto::Running> running = Commit(source);
  ASSERT_TRUE(running.ok()) << running.status();
  EXPECT_EQ(running->restored_pid(), static_cast<uint32_t>(pid_));
  EXPECT_TRUE(Counts(pid_));
  EXPECT_EQ(FinalFate(source.session_id()), proto::Fate::RUNNING);
  ASSERT_TRUE(source.control().Send(proto::CONTROL_DONE, proto::Done(), Soon()).ok());
  server_->WaitForSessions(0);
  EXPECT_TRUE(Counts(pid_));
}

TEST_F(HandoverTest, OnceEndsWithSuccessWhenTheProcessRuns) {
  ServerOptions options = Options();
  options.once = true;
  server_ = ServerProcess::Start(options);
  FakeSource source(server_->address());
  ASSERT_TRUE(BringToReady(source).ok());
  ASSERT_TRUE(Commit(source).ok());
  ASSERT_TRUE(source.control().Send(proto::CONTROL_DONE, proto::Done(), Soon()).ok());
  EXPECT_EQ(server_->Wait(), kSessionSucceeded);
  EXPECT_TRUE(Counts(pid_));
}

TEST_F(HandoverTest, SourceThatVanishesAtReadyLeavesNothing) {
  FakeSource source(server_->address());
  ASSERT_TRUE(BringToReady(source).ok());
  source.Vanish();
  EXPECT_TRUE(WaitForProcess(pid_, false));
  EXPECT_EQ(FinalFate(source.session_id()), proto::Fate::DESTROYED);
}

// As through a tunnel whose far link is lost: the connection stands, and nobody is behind it.
TEST_F(HandoverTest, SourceThatFallsSilentAtReadyLeavesNothing) {
  ServerOptions options = Options();
  options.silence_limit = absl::Seconds(2);
  server_ = ServerProcess::Start(options);
  FakeSource source(server_->address());
  ASSERT_TRUE(BringToReady(source).ok());
  EXPECT_TRUE(WaitForProcess(pid_, false));
  EXPECT_THAT(std::string(source.ExpectFailed().message()), HasSubstr("nothing for 2s"));
  server_->WaitForSessions(0);
  // Late, it learns that it never ran.
  EXPECT_EQ(FinalFate(source.session_id()), proto::Fate::DESTROYED);
}

// A session that an earlier server started is nobody's child here, and may die at any time.
TEST_F(HandoverTest, WhatAForeignSessionLeavesOpenIsSettledWhileTheServerRuns) {
  ServerOptions options = Options();
  options.settle_interval = absl::Milliseconds(100);
  server_ = ServerProcess::Start(options);
  FateStore store = *FateStore::Open(directory_.path());
  const std::string id = "0123456789abcdef";
  const pid_t landing = ::fork();
  ASSERT_GE(landing, 0);
  if (landing == 0) {
    for (;;) ::pause();
  }
  pid_ = landing;
  ASSERT_EQ(::kill(landing, SIGSTOP), 0);
  ASSERT_EQ(::waitpid(landing, nullptr, WUNTRACED), landing);
  {
    const LiveSession live = *store.BeginSession(id);
    ASSERT_TRUE(
        store.Commit(live, *LandingIdentity::Of(*kernel::ProcessHandle::Open(landing))).ok());
  }
  // Nobody asks for it.
  int status = 0;
  ASSERT_EQ(::waitpid(landing, &status, WCONTINUED), landing);
  EXPECT_TRUE(WIFCONTINUED(status)) << status;
  ASSERT_EQ(::kill(landing, SIGKILL), 0);
  ASSERT_EQ(::waitpid(landing, nullptr, 0), landing);
}

TEST_F(HandoverTest, SourceThatVanishesAfterCommitLeavesARunningProcess) {
  FakeSource source(server_->address());
  ASSERT_TRUE(BringToReady(source).ok());
  ASSERT_TRUE(SendCommit(source).ok());
  source.Vanish();
  EXPECT_EQ(FinalFate(source.session_id()), proto::Fate::RUNNING);
  EXPECT_TRUE(Counts(pid_));
}

// The landing must not be able to outlive its server before the record says that it may.
TEST_F(HandoverTest, FateThatCannotBeRecordedLeavesNothing) {
  FakeSource source(server_->address());
  ASSERT_TRUE(BringToReady(source).ok());
  const std::string records = absl::StrCat(directory_.path(), "/target");
  ASSERT_EQ(::rename(records.c_str(), absl::StrCat(records, "-away").c_str()), 0);
  EXPECT_FALSE(Commit(source).ok());
  EXPECT_TRUE(WaitForProcess(pid_, false));
  ASSERT_EQ(::rename(absl::StrCat(records, "-away").c_str(), records.c_str()), 0);
  EXPECT_EQ(FinalFate(source.session_id()), proto::Fate::DESTROYED);
}

TEST_F(HandoverTest, CommitOfAnotherSessionIsRefused) {
  FakeSource source(server_->address());
  ASSERT_TRUE(BringToReady(source).ok());
  proto::Commit commit;
  commit.set_session_id("another session!");
  ASSERT_TRUE(source.control().Send(proto::CONTROL_COMMIT, commit, Soon()).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(source.ExpectFailed()));
  EXPECT_TRUE(WaitForProcess(pid_, false));
}

TEST_F(HandoverTest, ServerThatIsToldToEndAtReadyLeavesNothing) {
  FakeSource source(server_->address());
  ASSERT_TRUE(BringToReady(source).ok());
  server_->Signal(SIGTERM);
  EXPECT_TRUE(absl::IsFailedPrecondition(source.ExpectFailed()));
  EXPECT_EQ(server_->Wait(), 0);
  EXPECT_TRUE(WaitForProcess(pid_, false));
}

TEST_F(HandoverTest, RestoredProcessOutlivesTheServer) {
  FakeSource source(server_->address());
  ASSERT_TRUE(BringToReady(source).ok());
  ASSERT_TRUE(Commit(source).ok());
  server_->Signal(SIGTERM);
  EXPECT_EQ(server_->Wait(), 0);
  EXPECT_TRUE(Counts(pid_));
  server_ = ServerProcess::Start(Options());
  EXPECT_EQ(FinalFate(source.session_id()), proto::Fate::RUNNING);
  EXPECT_TRUE(Counts(pid_));
}

TEST_F(HandoverTest, VerifySeesWhatDiffersAndNamesIt) {
  FakeSource source(server_->address());
  ASSERT_TRUE(BringToReady(source).ok());
  const std::string page = CountingPage();
  const auto self = kernel::ProcessHandle::Open(::getpid());
  // Hashing wants whole pages.
  const auto copy = base::MappedRegion::Anonymous(4096, /*populate=*/true);
  ASSERT_TRUE(copy.ok());
  std::memcpy(copy->data(), page.data(), page.size());
  const uint64_t address = reinterpret_cast<uint64_t>(copy->data());
  const std::vector<pagemap::Extent> extents = {
      base::AddressRange::FromOrdered(address, address + 4096)};
  const auto hashes = pagemap::HashPages(*self, extents, {});
  ASSERT_TRUE(hashes.ok()) << hashes.status();
  for (const bool wrong : {false, true}) {
    proto::Verify verify;
    proto::VerifyRange* range = verify.add_ranges();
    range->set_start(kCountingPage);
    range->add_page_hashes(hashes->front() + (wrong ? 1 : 0));
    verify.set_last(true);
    ASSERT_TRUE(source.control().Send(proto::CONTROL_VERIFY, verify, Soon()).ok());
    const auto reply =
        source.control().Expect<proto::VerifyReply>(proto::CONTROL_VERIFY_REPLY, Soon());
    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(reply->pages_compared(), 1u);
    EXPECT_EQ(reply->pages_differing(), wrong ? 1u : 0u);
    ASSERT_THAT(reply->differing_ranges(), SizeIs(wrong ? 1 : 0));
    for (const std::string& named : reply->differing_ranges()) {
      EXPECT_THAT(named, HasSubstr("7e0000000000"));
    }
  }
  // A page the source does not list, but that holds data here.
  proto::Verify nothing;
  nothing.set_last(true);
  ASSERT_TRUE(source.control().Send(proto::CONTROL_VERIFY, nothing, Soon()).ok());
  const auto reply =
      source.control().Expect<proto::VerifyReply>(proto::CONTROL_VERIFY_REPLY, Soon());
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->pages_differing(), 1u);
}

TEST_F(HandoverTest, VerifyOfMoreThanThereIsIsRefused) {
  FakeSource source(server_->address());
  ASSERT_TRUE(BringToReady(source).ok());
  proto::Verify verify;
  proto::VerifyRange* range = verify.add_ranges();
  range->set_start(kCountingPage);
  for (int i = 0; i < 1000; ++i) range->add_page_hashes(0);
  verify.set_last(true);
  ASSERT_TRUE(source.control().Send(proto::CONTROL_VERIFY, verify, Soon()).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(source.ExpectFailed()));
  EXPECT_TRUE(WaitForProcess(pid_, false));
}

TEST_F(HandoverTest, SessionKilledAtReadyLeavesNothing) {
  FakeSource source(server_->address());
  ASSERT_TRUE(BringToReady(source).ok());
  ASSERT_EQ(::kill(server_->WaitForSessions(1).front(), SIGKILL), 0);
  EXPECT_TRUE(WaitForProcess(pid_, false));
  EXPECT_EQ(FinalFate(source.session_id()), proto::Fate::DESTROYED);
}

TEST_F(HandoverTest, SessionKilledAfterRunningLeavesTheProcessAlone) {
  FakeSource source(server_->address());
  ASSERT_TRUE(BringToReady(source).ok());
  ASSERT_TRUE(Commit(source).ok());
  ASSERT_EQ(::kill(server_->WaitForSessions(1).front(), SIGKILL), 0);
  EXPECT_EQ(FinalFate(source.session_id()), proto::Fate::RUNNING);
  EXPECT_TRUE(Counts(pid_));
}

// Kills at moments around Commit, chosen at random: whatever was reached, the record and the
// process agree, and so does everybody who is asked later.
class KilledAroundCommitTest : public HandoverTest, public ::testing::WithParamInterface<bool> {};

TEST_P(KilledAroundCommitTest, RecordAndProcessAgree) {
  const bool kill_the_server_too = GetParam();
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937 random(seed);
  std::uniform_int_distribution<int> delay_us(0, 800);
  int running = 0;
  constexpr int kRounds = 25;
  for (int i = 0; i < kRounds; ++i) {
    if (i > 0) pid_ = FreePid();
    FakeSource source(server_->address());
    ASSERT_TRUE(BringToReady(source).ok());
    const pid_t session = server_->WaitForSessions(1).front();
    ASSERT_TRUE(SendCommit(source).ok());
    const timespec pause = {0, delay_us(random) * 1000};
    ::nanosleep(&pause, nullptr);
    if (kill_the_server_too) server_->Signal(SIGKILL);
    ::kill(session, SIGKILL);
    if (kill_the_server_too) {
      server_->Wait();
      server_ = ServerProcess::Start(Options());
    }
    ExpectOneTruth(source.session_id());
    if (::kill(pid_, 0) == 0) ++running;
    EndProcess();
    server_->WaitForSessions(0);
  }
  RecordProperty("running", running);
}

INSTANTIATE_TEST_SUITE_P(SessionAloneAndWithItsServer, KilledAroundCommitTest, ::testing::Bool());

}  // namespace
}  // namespace predump::pageserver
