// Fates of sessions that store images: the record and what is in the store agree.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "proto/stored.pb.h"
#include "src/base/atomic_file.h"
#include "src/images/image_file.h"
#include "src/images/image_store.h"
#include "src/images/state_images.h"
#include "src/pageserver/fate_store.h"
#include "tests/pageserver/fate_store_fixture.h"

namespace predump::pageserver {
namespace {

// A session that stores images, in a real store.
class StoredFateTest : public FateStoreTest {
 protected:
  images::ImageStore Images() { return *images::ImageStore::Open(directory_.File("images")); }

  static void WriteExtra(int directory_fd, const std::string& session_id) {
    proto::StoredExtra extra;
    extra.set_version(images::kExtraVersion);
    extra.set_session_id(session_id);
    auto writer = images::ImageWriter::Create(directory_fd, images::kExtraName,
                                              images::ImageMagic::kPredumpExtra);
    ASSERT_TRUE(writer.ok()) << writer.status();
    ASSERT_TRUE(writer->Add(extra).ok());
    ASSERT_TRUE(writer->Finish().ok());
  }

  static StoredImages PathsOf(const images::PartialDirectory& directory) {
    return {directory.partial_path(), directory.final_path()};
  }

  // What a session process does up to `step`; then it is killed, without a chance to tidy up.
  enum class Step { kPrepared, kCommitted, kRenamed, kPublished, kReleased };
  void KillSessionAfter(Step step, const std::string& id_in_images = kId) {
    const pid_t session = ::fork();
    ASSERT_GE(session, 0);
    if (session == 0) {
      FateStore store = Open();
      const LiveSession live = *store.BeginSession(kId);
      images::PartialDirectory directory = *Images().Begin(/*with_parent=*/false);
      WriteExtra(directory.fd(), id_in_images);
      const StoredImages paths = PathsOf(directory);
      bool ok = true;
      if (step >= Step::kCommitted) ok = store.Commit(live, paths).ok();
      if (step == Step::kRenamed) {
        ok = ok && ::rename(paths.partial_path.c_str(), paths.final_path.c_str()) == 0;
      } else if (step > Step::kRenamed) {
        ok = ok && directory.Publish().ok();
      }
      if (step == Step::kReleased) ok = ok && store.Release(live).ok();
      ::kill(::getpid(), ok ? SIGKILL : SIGABRT);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(session, &status, 0), session);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
  }

  bool Exists(absl::string_view name) {
    return ::access(absl::StrCat(directory_.File("images"), "/", name).c_str(), F_OK) == 0;
  }
  std::string Final() { return absl::StrCat(directory_.File("images"), "/1"); }
};

struct StoredDecision {
  int step;
  Outcome expected;
};

class KilledStoringSessionTest : public StoredFateTest,
                                 public ::testing::WithParamInterface<StoredDecision> {};

TEST_P(KilledStoringSessionTest, ImagesAndRecordAgree) {
  KillSessionAfter(static_cast<Step>(GetParam().step));
  for (int i = 0; i < 2; ++i) {
    const absl::StatusOr<Fate> fate = Open().Decide(kId);
    ASSERT_TRUE(fate.ok()) << fate.status();
    EXPECT_EQ(fate->outcome, GetParam().expected);
    const bool stored = GetParam().expected == Outcome::kRunning;
    EXPECT_EQ(fate->stored_in, stored ? Final() : "");
    EXPECT_EQ(fate->restored_pid, 0);
    EXPECT_EQ(Exists("1"), stored);
    EXPECT_EQ(Exists("latest"), stored);
    EXPECT_EQ(Record().state, stored ? FateState::kReleased : FateState::kDestroyed);
  }
  EXPECT_FALSE(*Open().NeedsSettling(absl::Hours(1)));
  if (static_cast<Step>(GetParam().step) != Step::kPrepared) {
    EXPECT_FALSE(Exists(".1.partial"));
  }
}

INSTANTIATE_TEST_SUITE_P(EachStep, KilledStoringSessionTest,
                         ::testing::Values(StoredDecision{0, Outcome::kDestroyed},
                                           StoredDecision{1, Outcome::kDestroyed},
                                           StoredDecision{2, Outcome::kRunning},
                                           StoredDecision{3, Outcome::kRunning},
                                           StoredDecision{4, Outcome::kRunning}));

TEST_F(StoredFateTest, WhatWasReleasedStaysSoWhateverBecomesOfTheImages) {
  KillSessionAfter(Step::kReleased);
  ASSERT_EQ(::rename(Final().c_str(), directory_.File("elsewhere").c_str()), 0);
  EXPECT_EQ(Decided(), Outcome::kRunning);
}

// Somebody may have moved the images away, and be about to restore them.
TEST_F(StoredFateTest, ImagesThatAreNowhereLeaveTheFateOpen) {
  KillSessionAfter(Step::kRenamed);
  ASSERT_EQ(::rename(Final().c_str(), directory_.File("elsewhere").c_str()), 0);
  const absl::Status undecided = Open().Decide(kId).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(undecided)) << undecided;
  EXPECT_THAT(std::string(undecided.message()), ::testing::HasSubstr(Final()));
  EXPECT_FALSE(Open().Settle(absl::Hours(1)).ok());
  EXPECT_EQ(Record().state, FateState::kCommitted);
  ASSERT_EQ(::rename(directory_.File("elsewhere").c_str(), Final().c_str()), 0);
  EXPECT_EQ(Decided(), Outcome::kRunning);
}

TEST_F(StoredFateTest, ImagesOfAnotherSessionDecideNothing) {
  KillSessionAfter(Step::kRenamed, "another session!");
  EXPECT_TRUE(absl::IsFailedPrecondition(Open().Decide(kId).status()));
  EXPECT_EQ(Record().state, FateState::kCommitted);
}

// A new writer removes what a dead one left, but not before it was decided about.
TEST_F(StoredFateTest, ANewWriterDecidesBeforeItTidiesUp) {
  KillSessionAfter(Step::kCommitted);
  FateStore store = Open();
  const auto begun = Images().Begin(
      /*with_parent=*/false,
      [&](const images::LockedStore& locked) { store.SettleTheDead(locked); });
  ASSERT_TRUE(begun.ok()) << begun.status();
  EXPECT_EQ(Record().state, FateState::kDestroyed);
  EXPECT_EQ(Decided(), Outcome::kDestroyed);
}

// It has locked the store itself, which must not keep it from finishing there.
TEST_F(StoredFateTest, ANewWriterLetsLatestLeadToWhatADeadOneRenamed) {
  KillSessionAfter(Step::kRenamed);
  FateStore store = Open();
  const auto begun = Images().Begin(
      /*with_parent=*/false,
      [&](const images::LockedStore& locked) { store.SettleTheDead(locked); });
  ASSERT_TRUE(begun.ok()) << begun.status();
  EXPECT_TRUE(Exists("latest"));
  EXPECT_TRUE(Record().resumed);
  EXPECT_EQ(begun->number(), "2");
}

TEST_F(StoredFateTest, LatestIsSetRightAsSoonAsThatIsPossible) {
  KillSessionAfter(Step::kRenamed);
  const std::string in_the_way = absl::StrCat(directory_.File("images"), "/latest");
  ASSERT_EQ(::mkdir(in_the_way.c_str(), 0700), 0);
  EXPECT_EQ(Decided(), Outcome::kRunning) << "the images are whole";
  EXPECT_EQ(Record().state, FateState::kReleased);
  EXPECT_TRUE(*Open().NeedsSettling(absl::Hours(1)));
  ASSERT_EQ(::rmdir(in_the_way.c_str()), 0);
  {
    const auto writer = Images().Begin(/*with_parent=*/false);
    ASSERT_TRUE(Open().Settle(absl::Hours(1)).ok());
    EXPECT_FALSE(Record().resumed) << "somebody else was writing";
  }
  ASSERT_TRUE(Open().Settle(absl::Hours(1)).ok());
  EXPECT_TRUE(Record().resumed);
  EXPECT_TRUE(Exists("latest/predump-extra"));
  EXPECT_FALSE(*Open().NeedsSettling(absl::Hours(1)));
}

TEST_F(StoredFateTest, ImagesThatWereTakenAwayNeedNoLatest) {
  KillSessionAfter(Step::kRenamed);
  const std::string in_the_way = absl::StrCat(directory_.File("images"), "/latest");
  ASSERT_EQ(::mkdir(in_the_way.c_str(), 0700), 0);
  EXPECT_EQ(Decided(), Outcome::kRunning);
  ASSERT_EQ(::rename(Final().c_str(), directory_.File("elsewhere").c_str()), 0);
  EXPECT_EQ(Decided(), Outcome::kRunning);
  EXPECT_FALSE(*Open().NeedsSettling(absl::Hours(1)));
}

TEST_F(StoredFateTest, SettleDecidesForTheDead) {
  KillSessionAfter(Step::kCommitted);
  EXPECT_TRUE(*Open().NeedsSettling(absl::Hours(1)));
  ASSERT_TRUE(Open().Settle(absl::Hours(1)).ok());
  EXPECT_EQ(Record().state, FateState::kDestroyed);
  EXPECT_FALSE(Exists(".1.partial"));
}

TEST_F(StoredFateTest, NobodyDecidesWhileTheSessionLives) {
  FateStore store = Open();
  const LiveSession live = *store.BeginSession(kId);
  images::PartialDirectory directory = *Images().Begin(/*with_parent=*/false);
  WriteExtra(directory.fd(), kId);
  ASSERT_TRUE(store.Commit(live, PathsOf(directory)).ok());
  EXPECT_EQ(Decided(), Outcome::kPending);
  EXPECT_TRUE(Exists(".1.partial"));
  ASSERT_TRUE(directory.Publish().ok());
  EXPECT_EQ(Decided(), Outcome::kPending);
  ASSERT_TRUE(store.Release(live).ok());
  EXPECT_EQ(Decided(), Outcome::kRunning);
  EXPECT_EQ(Open().Decide(kId)->stored_in, Final());
}

TEST_F(StoredFateTest, APathThatFitsNoRecordIsRefusedBeforeAnythingIsDecided) {
  FateStore store = Open();
  const LiveSession live = *store.BeginSession(kId);
  const std::string long_path = absl::StrCat("/", std::string(2000, 'x'));
  EXPECT_TRUE(absl::IsInvalidArgument(store.Commit(live, StoredImages{long_path, long_path})));
  EXPECT_EQ(Record().state, FateState::kPreparing);
  EXPECT_TRUE(store.Destroy(live).ok());
}

TEST_F(StoredFateTest, DamagedRecordIsAnErrorAndDecidesNothing) {
  KillSessionAfter(Step::kCommitted);
  const std::string whole = *base::ReadWholeFile(RecordPath());
  const size_t text_size = whole.find_last_not_of('\n') + 1;
  for (size_t size = 0; size < text_size; ++size) {
    ASSERT_TRUE(base::WriteFileAtomically(RecordPath(), whole.substr(0, size)).ok());
    EXPECT_FALSE(Open().Decide(kId).ok()) << whole.substr(0, size);
    EXPECT_EQ(*base::ReadWholeFile(RecordPath()), whole.substr(0, size));
  }
  EXPECT_TRUE(Exists(".1.partial"));
}

}  // namespace
}  // namespace predump::pageserver
