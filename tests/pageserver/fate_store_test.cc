#include "src/pageserver/fate_store.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "src/base/atomic_file.h"
#include "tests/pageserver/fate_store_fixture.h"
#include "tests/support/temp_dir.h"

namespace predump::pageserver {
namespace {

TEST_F(FateStoreTest, UnknownSessionIsDestroyedAndCanNeverBegin) {
  EXPECT_EQ(Decided(), Outcome::kDestroyed);
  EXPECT_EQ(Record().state, FateState::kDestroyed);
  EXPECT_TRUE(absl::IsFailedPrecondition(Open().BeginSession(kId).status()));
  EXPECT_EQ(Decided(), Outcome::kDestroyed);
}

TEST_F(FateStoreTest, IdsOfAnotherLengthAreRefused) {
  EXPECT_TRUE(absl::IsInvalidArgument(Open().BeginSession("short").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Open().Decide("../../../../etc").status()));
}

TEST_F(FateStoreTest, NobodyDecidesWhileTheSessionLives) {
  FateStore store = Open();
  const LiveSession live = *store.BeginSession(kId);
  EXPECT_EQ(Decided(), Outcome::kPending);
  ASSERT_TRUE(store.Commit(live, landing_.identity()).ok());
  EXPECT_EQ(Decided(), Outcome::kPending);
  ASSERT_TRUE(store.Release(live).ok());
  EXPECT_EQ(Decided(), Outcome::kRunning);
  EXPECT_FALSE(Record().resumed);
  EXPECT_TRUE(absl::IsFailedPrecondition(Open().BeginSession(kId).status()));
}

TEST_F(FateStoreTest, LateCommitOfADestroyedSessionFails) {
  FateStore store = Open();
  const LiveSession live = *store.BeginSession(kId);
  // As if the lock had been lost with its process while the commit was under way.
  ASSERT_EQ(::unlink((RecordPath() + ".alive").c_str()), 0);
  EXPECT_EQ(Decided(), Outcome::kDestroyed);
  EXPECT_TRUE(absl::IsFailedPrecondition(store.Commit(live, landing_.identity())));
  EXPECT_TRUE(absl::IsFailedPrecondition(store.Release(live)));
  EXPECT_EQ(Record().state, FateState::kDestroyed);
}

TEST_F(FateStoreTest, TransitionsOutOfOrderAreRefused) {
  FateStore store = Open();
  const LiveSession live = *store.BeginSession(kId);
  EXPECT_TRUE(absl::IsFailedPrecondition(store.Release(live)));
  EXPECT_TRUE(absl::IsFailedPrecondition(store.Resumed(live)));
  ASSERT_TRUE(store.Commit(live, landing_.identity()).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(store.Commit(live, landing_.identity())));
  EXPECT_TRUE(absl::IsFailedPrecondition(store.Destroy(live)));
  ASSERT_TRUE(store.Release(live).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(store.Destroy(live)));
}

TEST_F(FateStoreTest, DoneForgetsEverything) {
  FateStore store = Open();
  const LiveSession live = *store.BeginSession(kId);
  ASSERT_TRUE(store.Forget(live).ok());
  EXPECT_FALSE(HasRecord());
  EXPECT_NE(::access((RecordPath() + ".alive").c_str(), F_OK), 0);
}

enum class LandingIs { kDead, kParked, kGoing };

struct Decision {
  FateState left_in;
  bool resumed;
  LandingIs landing;
  Outcome expected;
  FateState recorded;
  bool goes_on;  // the landing, afterwards
};

class FateDecisionTest : public FateStoreTest, public ::testing::WithParamInterface<Decision> {};

TEST_P(FateDecisionTest, AfterTheSessionDied) {
  const Decision& expected = GetParam();
  LeaveIn(expected.left_in, expected.resumed);
  if (expected.landing == LandingIs::kDead) landing_.Kill();
  if (expected.landing == LandingIs::kParked) landing_.Stop();
  const pid_t pid = landing_.pid();

  // Asked twice, the second time of a store opened anew: a fate is decided once.
  for (int i = 0; i < 2; ++i) {
    const absl::StatusOr<Fate> fate = Open().Decide(kId);
    ASSERT_TRUE(fate.ok()) << fate.status();
    EXPECT_EQ(fate->outcome, expected.expected);
    if (expected.expected == Outcome::kRunning && pid != 0) {
      EXPECT_EQ(fate->restored_pid, pid);
    }
    EXPECT_EQ(Record().state, expected.recorded);
  }
  if (expected.landing != LandingIs::kDead) {
    EXPECT_EQ(landing_.Counts(), expected.goes_on);
  }
}

INSTANTIATE_TEST_SUITE_P(
    AllStates, FateDecisionTest,
    ::testing::Values(
        // While it only prepares, the landing cannot run, whatever it looks like.
        Decision{FateState::kPreparing, false, LandingIs::kDead, Outcome::kDestroyed,
                 FateState::kDestroyed, false},
        Decision{FateState::kDestroyed, false, LandingIs::kDead, Outcome::kDestroyed,
                 FateState::kDestroyed, false},
        Decision{FateState::kCommitted, false, LandingIs::kDead, Outcome::kDestroyed,
                 FateState::kDestroyed, false},
        Decision{FateState::kCommitted, false, LandingIs::kParked, Outcome::kRunning,
                 FateState::kReleased, true},
        // Somebody sent SIGCONT.
        Decision{FateState::kCommitted, false, LandingIs::kGoing, Outcome::kRunning,
                 FateState::kReleased, true},
        Decision{FateState::kReleased, false, LandingIs::kDead, Outcome::kRunning,
                 FateState::kReleased, false},
        Decision{FateState::kReleased, false, LandingIs::kParked, Outcome::kRunning,
                 FateState::kReleased, true},
        Decision{FateState::kReleased, false, LandingIs::kGoing, Outcome::kRunning,
                 FateState::kReleased, true},
        Decision{FateState::kReleased, true, LandingIs::kDead, Outcome::kRunning,
                 FateState::kReleased, false},
        // It was seen to run; who stopped it since had reasons.
        Decision{FateState::kReleased, true, LandingIs::kParked, Outcome::kRunning,
                 FateState::kReleased, false}));

TEST_F(FateStoreTest, LandingOfAnotherBootOrARecycledPidIsDead) {
  for (const bool other_boot : {true, false}) {
    FateStore store = Open();
    LandingIdentity identity = landing_.identity();
    (other_boot ? identity.boot_id = "another"
                : (identity.start_time_ticks += 1, identity.boot_id));
    {
      const LiveSession live = *store.BeginSession(kId);
      ASSERT_TRUE(store.Commit(live, identity).ok());
    }
    EXPECT_EQ(Decided(), Outcome::kDestroyed);
    EXPECT_TRUE(landing_.Counts());
    ASSERT_EQ(::unlink(RecordPath().c_str()), 0);
  }
}

TEST_F(FateStoreTest, LandingOfAnotherPidNamespaceCannotBeJudged) {
  LandingIdentity identity = landing_.identity();
  identity.pid_namespace += 1;
  {
    FateStore store = Open();
    const LiveSession live = *store.BeginSession(kId);
    ASSERT_TRUE(store.Commit(live, identity).ok());
  }
  EXPECT_TRUE(absl::IsFailedPrecondition(Open().Decide(kId).status()));
  EXPECT_EQ(Record().state, FateState::kCommitted);
}

// A session process that traces the landing as the real one does, up to `step`, and is then killed.
enum class KilledAt { kCommitted, kExitKillCleared, kReleased };

class KilledSessionTest : public FateStoreTest, public ::testing::WithParamInterface<KilledAt> {
 protected:
  void KillSessionAt(KilledAt step) {
    int ready[2];
    ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
    const pid_t session = ::fork();
    ASSERT_GE(session, 0);
    if (session == 0) {
      FateStore store = Open();
      const LiveSession live = *store.BeginSession(kId);
      if (::ptrace(PTRACE_SEIZE, landing_.pid(), 0, PTRACE_O_EXITKILL) != 0) ::_exit(1);
      ::ptrace(PTRACE_INTERRUPT, landing_.pid(), 0, 0);
      ::waitpid(landing_.pid(), nullptr, __WALL);
      ::kill(landing_.pid(), SIGSTOP);
      if (!store.Commit(live, landing_.identity()).ok()) ::_exit(2);
      if (step >= KilledAt::kExitKillCleared) {
        ::ptrace(PTRACE_SETOPTIONS, landing_.pid(), 0, 0);
      }
      if (step >= KilledAt::kReleased && !store.Release(live).ok()) ::_exit(3);
      if (::write(ready[1], "x", 1) != 1) ::_exit(4);
      for (;;) ::pause();
    }
    ::close(ready[1]);
    char byte;
    ASSERT_EQ(::read(ready[0], &byte, 1), 1);
    ::close(ready[0]);
    EXPECT_EQ(Decided(), step == KilledAt::kReleased ? Outcome::kRunning : Outcome::kPending);
    ASSERT_EQ(::kill(session, SIGKILL), 0);
    // Not waited for: the decision has to stand while the session is still dying.
    session_ = session;
  }
  void TearDown() override {
    if (session_ > 0) ::waitpid(session_, nullptr, 0);
  }

  pid_t session_ = 0;
};

TEST_P(KilledSessionTest, ExactlyWhatIsRecordedHappens) {
  KillSessionAt(GetParam());
  // The dying session may still hold its lock for a moment: ask as a source would.
  Outcome outcome = Decided();
  while (outcome == Outcome::kPending) outcome = Decided();
  const bool runs = GetParam() != KilledAt::kCommitted;
  EXPECT_EQ(outcome, runs ? Outcome::kRunning : Outcome::kDestroyed);
  while (runs && !Record().resumed) EXPECT_EQ(Decided(), Outcome::kRunning);
  EXPECT_EQ(landing_.Counts(), runs);
  EXPECT_EQ(Decided(), outcome);
}

INSTANTIATE_TEST_SUITE_P(EachStep, KilledSessionTest,
                         ::testing::Values(KilledAt::kCommitted, KilledAt::kExitKillCleared,
                                           KilledAt::kReleased));

TEST_F(FateStoreTest, ManyDecidersSayTheSame) {
  LeaveIn(FateState::kCommitted);
  landing_.Stop();
  std::vector<pid_t> deciders;
  for (int i = 0; i < 8; ++i) {
    const pid_t pid = ::fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
      const absl::StatusOr<Fate> fate = Open().Decide(kId);
      ::_exit(fate.ok() && fate->outcome == Outcome::kRunning ? 0 : 1);
    }
    deciders.push_back(pid);
  }
  for (const pid_t pid : deciders) {
    int status = -1;
    ASSERT_EQ(::waitpid(pid, &status, 0), pid);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
  EXPECT_TRUE(landing_.Counts());
}

TEST_F(FateStoreTest, SettleFinishesWhatADeadSessionLeft) {
  LeaveIn(FateState::kCommitted);
  landing_.Stop();
  ASSERT_TRUE(Open().Settle(absl::Hours(1)).ok());
  EXPECT_TRUE(landing_.Counts());
  EXPECT_EQ(Record().state, FateState::kReleased);
  EXPECT_TRUE(Record().resumed);
}

TEST_F(FateStoreTest, OnlyWhatIsOpenOrOldNeedsSettling) {
  EXPECT_FALSE(*Open().NeedsSettling(absl::ZeroDuration())) << "nothing is on record";
  LeaveIn(FateState::kCommitted);
  EXPECT_TRUE(*Open().NeedsSettling(absl::Hours(1)));
  ASSERT_TRUE(Open().Settle(absl::Hours(1)).ok());
  EXPECT_FALSE(*Open().NeedsSettling(absl::ZeroDuration())) << "what ran is kept";
  ASSERT_EQ(::unlink(RecordPath().c_str()), 0);
  LeaveIn(FateState::kReleased);
  EXPECT_TRUE(*Open().NeedsSettling(absl::Hours(1)));
  ASSERT_EQ(::unlink(RecordPath().c_str()), 0);
  LeaveIn(FateState::kDestroyed);
  EXPECT_FALSE(*Open().NeedsSettling(absl::Hours(1)));
  EXPECT_TRUE(*Open().NeedsSettling(absl::ZeroDuration()));
  ASSERT_TRUE(base::WriteFileAtomically(RecordPath(), "damaged").ok());
  EXPECT_FALSE(*Open().NeedsSettling(absl::ZeroDuration()));
}

TEST_F(FateStoreTest, SettleForgetsOldFatesOfWhatNeverRan) {
  LeaveIn(FateState::kDestroyed);
  ASSERT_TRUE(Open().Settle(absl::Hours(1)).ok());
  EXPECT_TRUE(HasRecord());
  ASSERT_TRUE(Open().Settle(absl::ZeroDuration()).ok());
  EXPECT_FALSE(HasRecord());
}

// Its source may still be parked, and would resume it if told that nobody knows of it.
TEST_F(FateStoreTest, WhatRanIsNeverForgottenWithoutDone) {
  LeaveIn(FateState::kReleased, /*resumed=*/true);
  landing_.Kill();
  ASSERT_TRUE(Open().Settle(absl::ZeroDuration()).ok());
  EXPECT_TRUE(HasRecord());
  EXPECT_EQ(Open().Decide(kId)->outcome, Outcome::kRunning);
}

TEST_F(FateStoreTest, EachStoreHasAnIdOfItsOwnThatStays) {
  const std::string id = Open().id();
  EXPECT_EQ(id.size(), 16u);
  EXPECT_EQ(Open().id(), id);
  const auto elsewhere = test_support::TempDir::Create();
  ASSERT_TRUE(elsewhere.ok());
  EXPECT_NE(FateStore::Open(elsewhere->path())->id(), id);
}

TEST_F(FateStoreTest, SettleLeavesLiveSessionsAlone) {
  FateStore store = Open();
  const LiveSession live = *store.BeginSession(kId);
  ASSERT_TRUE(Open().Settle(absl::ZeroDuration()).ok());
  EXPECT_EQ(Record().state, FateState::kPreparing);
  EXPECT_TRUE(store.Commit(live, landing_.identity()).ok());
}

TEST_F(FateStoreTest, DamagedRecordIsAnErrorAndDecidesNothing) {
  LeaveIn(FateState::kCommitted);
  const std::string whole = *base::ReadWholeFile(RecordPath());
  // Records are filled up with empty lines, which may be missing.
  const size_t text_size = whole.find_last_not_of('\n') + 1;
  for (size_t size = 0; size < text_size; size += 7) {
    ASSERT_TRUE(base::WriteFileAtomically(RecordPath(), whole.substr(0, size)).ok());
    const absl::StatusOr<Fate> fate = Open().Decide(kId);
    EXPECT_FALSE(fate.ok()) << whole.substr(0, size);
    EXPECT_EQ(*base::ReadWholeFile(RecordPath()), whole.substr(0, size));
  }
}
TEST(FateRecordTest, PathsMayHoldAnything) {
  FateRecord record;
  record.state = FateState::kCommitted;
  record.images = StoredImages{"/a b\nstate destroyed\n/.1.partial", "/a b\nstate destroyed\n/1"};
  const absl::StatusOr<FateRecord> read = FateRecord::Parse(record.Serialize());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->state, FateState::kCommitted);
  EXPECT_EQ(read->images->partial_path, record.images->partial_path);
  EXPECT_EQ(read->images->final_path, record.images->final_path);
  EXPECT_FALSE(read->landing.has_value());
}

TEST(FateRecordTest, WhatIsWrittenIsRead) {
  FateRecord record;
  record.state = FateState::kReleased;
  record.resumed = true;
  record.landing = LandingIdentity{42, 4711, "boot", 99};
  record.written = absl::FromUnixSeconds(1'700'000'000);
  const absl::StatusOr<FateRecord> read = FateRecord::Parse(record.Serialize());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->state, record.state);
  EXPECT_TRUE(read->resumed);
  EXPECT_EQ(read->written, record.written);
  EXPECT_EQ(read->landing->pid, 42);
  EXPECT_EQ(read->landing->start_time_ticks, 4711u);
  EXPECT_EQ(read->landing->boot_id, "boot");
  EXPECT_EQ(read->landing->pid_namespace, 99u);
}

}  // namespace
}  // namespace predump::pageserver
