// How whole moves into a store end: images and the record of their fate agree, whatever happens to
// source, session and server.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "src/images/image_constants.h"
#include "src/images/image_file.h"
#include "src/images/image_store.h"
#include "src/images/state_images.h"
#include "src/pagemap/page_hash.h"
#include "src/pageserver/fate_store.h"
#include "src/pageserver/stored_extra.h"
#include "src/transport/page_server_protocol.h"
#include "src/transport/socket.h"
#include "tests/pageserver/image_session_fixture.h"

namespace predump::pageserver {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST_F(ImageSessionTest, AWholeMoveEndsWithImagesThatHoldAll) {
  FakeSource source(server_->address());
  const absl::StatusOr<proto::Ready> ready = BringToReady(source);
  ASSERT_TRUE(ready.ok()) << ready.status();
  EXPECT_EQ(ready->stored_in(), absl::StrCat(StorePath(), "/2"));
  EXPECT_FALSE(ready->has_restored_pid());
  EXPECT_THAT(Names(), ElementsAre(".2.partial", "1", "latest"));
  proto::Commit commit;
  commit.set_session_id(source.session_id());
  siginfo_t late = {};
  late.si_signo = SIGUSR1;
  commit.add_late_signals()->set_siginfo(&late, sizeof late);
  const absl::StatusOr<proto::Running> running = Commit(source, commit);
  ASSERT_TRUE(running.ok()) << running.status();
  EXPECT_EQ(running->restored_pid(), 0u);
  EXPECT_EQ(running->stored_in(), ready->stored_in());
  EXPECT_THAT(Names(), ElementsAre("1", "2", "latest"));
  EXPECT_EQ(Letters("latest"), "abaa....");
  const base::UniqueFd fd = OpenNumber("2");
  const absl::StatusOr<proto::StoredExtra> extra = ReadStoredExtra(fd.get());
  ASSERT_TRUE(extra.ok()) << extra.status();
  EXPECT_EQ(extra->session_id(), source.session_id());
  const absl::StatusOr<images::StoredState> stored = images::ReadState(fd.get());
  ASSERT_TRUE(stored.ok()) << stored.status();
  const auto& queued = stored->state.threads(0).core().tc().signals_s().signals();
  ASSERT_EQ(queued.size(), 1);
  EXPECT_EQ(queued[0].siginfo().substr(0, sizeof late), commit.late_signals(0).siginfo());
  const proto::Fate fate = FinalFate(source.session_id());
  EXPECT_EQ(fate.outcome(), proto::Fate::RUNNING);
  EXPECT_EQ(fate.stored_in(), running->stored_in());
  EXPECT_FALSE(fate.has_restored_pid());
  ASSERT_TRUE(source.control().Send(proto::CONTROL_DONE, proto::Done(), Soon()).ok());
  server_->WaitForSessions(0);
}

TEST_F(ImageSessionTest, WhatIsStoredCanBeReadAsAState) {
  FakeSource source(server_->address());
  ASSERT_TRUE(BringToReady(source).ok());
  ASSERT_TRUE(Commit(source).ok());
  const absl::StatusOr<images::StoredState> stored = images::ReadState(OpenNumber("latest").get());
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(stored->state.pid(), static_cast<uint32_t>(pid_));
  EXPECT_THAT(stored->blockers, IsEmpty());
}

TEST_F(ImageSessionTest, OnceEndsWithSuccessWhenTheProcessIsStored) {
  ServerOptions options = Options();
  options.once = true;
  server_ = ServerProcess::Start(options);
  FakeSource source(server_->address());
  ASSERT_TRUE(BringToReady(source).ok());
  ASSERT_TRUE(Commit(source).ok());
  ASSERT_TRUE(source.control().Send(proto::CONTROL_DONE, proto::Done(), Soon()).ok());
  EXPECT_EQ(server_->Wait(), kSessionSucceeded);
}

// --leave-running: the images are kept, and the process is still the source's.
TEST_F(ImageSessionTest, ARehearsalIsKeptAndHandsNothingOver) {
  FakeSource source(server_->address());
  ASSERT_TRUE(BringToReady(source).ok());
  proto::Cancel cancel;
  cancel.set_rehearsed(true);
  ASSERT_TRUE(source.control().Send(proto::CONTROL_CANCEL, cancel, Soon()).ok());
  const auto running = source.control().Expect<proto::Running>(proto::CONTROL_RUNNING, Soon());
  ASSERT_TRUE(running.ok()) << running.status();
  EXPECT_EQ(running->stored_in(), absl::StrCat(StorePath(), "/2"));
  EXPECT_EQ(Letters("2"), "abaa....");
  EXPECT_EQ(FinalFate(source.session_id()).outcome(), proto::Fate::DESTROYED);
  server_->WaitForSessions(0);
  EXPECT_THAT(Names(), ElementsAre("1", "2", "latest"));
}

TEST_F(ImageSessionTest, ACancelAtReadyLeavesNothingOfTheLastDirectory) {
  FakeSource source(server_->address());
  ASSERT_TRUE(BringToReady(source).ok());
  ASSERT_TRUE(source.control().Send(proto::CONTROL_CANCEL, proto::Cancel(), Soon()).ok());
  EXPECT_FALSE(source.ExpectFailed().ok());
  ExpectOnlyTheFirstRound(source.session_id());
}

TEST_F(ImageSessionTest, ASourceThatVanishesAtReadyLeavesNothingOfTheLastDirectory) {
  FakeSource source(server_->address());
  ASSERT_TRUE(BringToReady(source).ok());
  source.Vanish();
  ExpectOnlyTheFirstRound(source.session_id());
}

TEST_F(ImageSessionTest, CommitOfAnotherSessionIsRefused) {
  FakeSource source(server_->address());
  ASSERT_TRUE(BringToReady(source).ok());
  proto::Commit commit;
  commit.set_session_id("another session!");
  EXPECT_TRUE(absl::IsFailedPrecondition(Commit(source, commit).status()));
  ExpectOnlyTheFirstRound(source.session_id());
}

// Nothing may have the final name that no record tells of: its source would run on beside it.
TEST_F(ImageSessionTest, FateThatCannotBeRecordedLeavesNothingOfTheLastDirectory) {
  FakeSource source(server_->address());
  ASSERT_TRUE(BringToReady(source).ok());
  const std::string records = absl::StrCat(directory_.path(), "/target");
  ASSERT_EQ(::rename(records.c_str(), absl::StrCat(records, "-away").c_str()), 0);
  EXPECT_FALSE(Commit(source).ok());
  ASSERT_EQ(::rename(absl::StrCat(records, "-away").c_str(), records.c_str()), 0);
  ExpectOnlyTheFirstRound(source.session_id());
}

TEST_F(ImageSessionTest, APublicationThatFailsIsDecidedByWhatIsThere) {
  FakeSource source(server_->address());
  ASSERT_TRUE(BringToReady(source).ok());
  // Somebody else's: the last directory cannot get its name.
  ASSERT_TRUE(std::filesystem::create_directory(absl::StrCat(StorePath(), "/2")));
  const absl::Status failed = Commit(source).status();
  EXPECT_THAT(std::string(failed.message()), HasSubstr("rename"));
  EXPECT_EQ(FinalFate(source.session_id()).outcome(), proto::Fate::DESTROYED);
  server_->WaitForSessions(0);
  EXPECT_THAT(Names(), ElementsAre("1", "2", "latest"));
  EXPECT_EQ(Letters("latest"), "aaaa....");
}

TEST_F(ImageSessionTest, ServerThatIsToldToEndAtReadyLeavesNothingOfTheLastDirectory) {
  FakeSource source(server_->address());
  ASSERT_TRUE(BringToReady(source).ok());
  server_->Signal(SIGTERM);
  EXPECT_TRUE(absl::IsFailedPrecondition(source.ExpectFailed()));
  EXPECT_EQ(server_->Wait(), 0);
  server_ = ServerProcess::Start(Options());
  ExpectOnlyTheFirstRound(source.session_id());
}

// Whoever comes next tidies up; what a dead session left is what its source will ask about.
TEST_F(ImageSessionTest, ACriuClientThatComesNextDecidesBeforeItTidiesUp) {
  namespace protocol = transport::page_server;
  const std::string id = "0123456789abcdef";
  const pid_t session = ::fork();
  ASSERT_GE(session, 0);
  if (session == 0) {
    // Of no server here: nobody notices its death.
    FateStore store = *FateStore::Open(directory_.path());
    const LiveSession live = *store.BeginSession(id);
    const images::PartialDirectory directory =
        *images::ImageStore::Open(StorePath())->Begin(/*with_parent=*/false);
    proto::StoredExtra extra;
    extra.set_version(images::kExtraVersion);
    extra.set_session_id(id);
    auto writer = *images::ImageWriter::Create(directory.fd(), images::kExtraName,
                                               images::ImageMagic::kPredumpExtra);
    const bool ok =
        writer.Add(extra).ok() && writer.Finish().ok() &&
        store.Commit(live, StoredImages{directory.partial_path(), directory.final_path()}).ok();
    ::kill(::getpid(), ok ? SIGKILL : SIGABRT);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(session, &status, 0), session);
  ASSERT_EQ(WTERMSIG(status), SIGKILL);
  ASSERT_THAT(Names(), ElementsAre(".1.partial"));

  const auto client = transport::Connect(server_->address(), {}, Soon());
  ASSERT_TRUE(client.ok()) << client.status();
  protocol::Message open;
  open.command = protocol::kOpen2;
  open.object = protocol::TaskObject(static_cast<uint32_t>(pid_));
  const auto bytes = protocol::Encode(open, protocol::HeaderSize::kOld);
  ASSERT_EQ(::write(client->get(), bytes.data(), 24), 24);
  char answer = 1;
  ASSERT_EQ(::read(client->get(), &answer, 1), 1);
  EXPECT_EQ(FinalFate(id).outcome(), proto::Fate::DESTROYED);
}

TEST_F(ImageSessionTest, VerifyComparesWithWhatIsOnDisk) {
  FakeSource source(server_->address());
  ASSERT_TRUE(BringToReady(source).ok());
  const auto hash = [](char letter) {
    const std::vector<std::byte> page(kPage, static_cast<std::byte>(letter));
    return pagemap::HashPage(page);
  };
  const auto differing = [&](const std::string& letters) {
    proto::Verify verify;
    for (const char letter : letters) {
      proto::VerifyRange* range = verify.add_ranges();
      range->set_start(kCountingPage);
      range->add_page_hashes(hash(letter));
    }
    verify.set_last(true);
    EXPECT_TRUE(source.control().Send(proto::CONTROL_VERIFY, verify, Soon()).ok());
    const auto reply =
        source.control().Expect<proto::VerifyReply>(proto::CONTROL_VERIFY_REPLY, Soon());
    EXPECT_TRUE(reply.ok()) << reply.status();
    return reply.ok() ? reply->pages_differing() : ~0ull;
  };
  // The state has one page there; what is stored beyond it is not looked at.
  EXPECT_EQ(differing("a"), 0u);
  EXPECT_EQ(differing("b"), 1u);
  EXPECT_EQ(differing(""), 1u) << "a page that the source does not have";
}

// Kills at moments around Commit, chosen at random: whatever was reached, the record and the
// images agree, and so does everybody who is asked later.
class KilledAroundStoreTest : public ImageSessionTest,
                              public ::testing::WithParamInterface<bool> {};

TEST_P(KilledAroundStoreTest, RecordAndImagesAgree) {
  const bool kill_the_server_too = GetParam();
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937 random(seed);
  std::uniform_int_distribution<int> delay_us(0, 3000);
  int stored = 0;
  constexpr int kRounds = 25;
  for (int i = 0; i < kRounds; ++i) {
    FakeSource source(server_->address());
    const absl::StatusOr<proto::Ready> ready = BringToReady(source);
    ASSERT_TRUE(ready.ok()) << ready.status();
    const pid_t session = server_->WaitForSessions(1).front();
    proto::Commit commit;
    commit.set_session_id(source.session_id());
    ASSERT_TRUE(source.control().Send(proto::CONTROL_COMMIT, commit, Soon()).ok());
    const timespec pause = {0, delay_us(random) * 1000};
    ::nanosleep(&pause, nullptr);
    if (kill_the_server_too) server_->Signal(SIGKILL);
    ::kill(session, SIGKILL);
    if (kill_the_server_too) {
      server_->Wait();
      WaitForProcess(session, false);
      server_ = ServerProcess::Start(Options());
    }
    const proto::Fate fate = FinalFate(source.session_id());
    const std::string final_path = ready->stored_in();
    if (fate.outcome() == proto::Fate::RUNNING) {
      ++stored;
      EXPECT_EQ(fate.stored_in(), final_path);
      EXPECT_EQ(Letters("latest"), "abaa....");
      EXPECT_EQ(std::filesystem::read_symlink(StorePath() + "/latest"),
                std::filesystem::path(final_path).filename());
    } else {
      EXPECT_EQ(fate.outcome(), proto::Fate::DESTROYED);
      EXPECT_FALSE(std::filesystem::exists(final_path));
      EXPECT_EQ(Letters("latest"), "aaaa....");
    }
    EXPECT_EQ(FinalFate(source.session_id()).outcome(), fate.outcome());
    server_->WaitForSessions(0);
  }
  RecordProperty("stored", stored);
}

INSTANTIATE_TEST_SUITE_P(SessionAloneAndWithItsServer, KilledAroundStoreTest, ::testing::Bool());

}  // namespace
}  // namespace predump::pageserver
