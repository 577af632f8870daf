#include "src/pageserver/server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "src/base/clock.h"
#include "src/transport/data_format.h"
#include "src/transport/socket.h"
#include "tests/pageserver/server_process.h"
#include "tests/support/temp_dir.h"

namespace predump::pageserver {
namespace {

using ::testing::HasSubstr;

class ServerTest : public ::testing::Test {
 protected:
  ServerOptions Options() const {
    ServerOptions options;
    options.listen = *transport::Address::Parse("127.0.0.1:0");
    options.state_directory = directory_.path();
    return options;
  }

  // Asks a server with the same records, started anew.
  proto::Fate::Outcome FateAfterRestart(const std::string& session_id) {
    const auto server = ServerProcess::Start(Options());
    FakeSource asking(server->address());
    const absl::StatusOr<proto::Fate> fate = asking.AskFate(session_id);
    EXPECT_TRUE(fate.ok()) << fate.status();
    return fate.ok() ? fate->outcome() : proto::Fate::UNKNOWN;
  }

  // The server still does its work.
  void ExpectServes(const ServerProcess& server) {
    FakeSource source(server.address());
    proto::Begin begin = source.MakeBegin(FreePid());
    begin.set_check_only(true);
    const absl::StatusOr<proto::BeginReply> reply = source.Begin(begin);
    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(reply->blockers_size(), 0) << reply->DebugString();
  }

  base::UniqueFd ConnectRaw(const ServerProcess& server) {
    auto socket = transport::Connect(server.address(), {}, Soon());
    EXPECT_TRUE(socket.ok()) << socket.status();
    return *std::move(socket);
  }

  // The server closes a connection that it does not want, at once or after its patience.
  static void ExpectClosed(int fd) {
    char byte;
    ASSERT_EQ(*transport::WaitFor(fd, POLLIN, Soon()), transport::WaitResult::kReady);
    EXPECT_LE(::recv(fd, &byte, 1, 0), 0);
  }

  test_support::TempDir directory_ = *test_support::TempDir::Create();
};

TEST_F(ServerTest, HelloTellsTheHostsFacts) {
  const auto server = ServerProcess::Start(Options());
  FakeSource source(server->address());
  EXPECT_EQ(source.hello().protocol_version(), transport::kProtocolVersion);
  EXPECT_FALSE(source.hello().host().kernel_release().empty());
  EXPECT_FALSE(source.hello().host().boot_id().empty());
}

TEST_F(ServerTest, ListeningBeyondLoopbackNeedsToBeAskedFor) {
  ServerOptions options = Options();
  options.listen = *transport::Address::Parse("0.0.0.0:0");
  const absl::StatusOr<int> refused = RunServer(options, [](const std::string&) { FAIL(); });
  EXPECT_TRUE(absl::IsPermissionDenied(refused.status())) << refused.status();
  EXPECT_THAT(refused.status().message(), HasSubstr("--insecure-no-auth"));
  options.insecure_no_auth = true;
  const auto server = ServerProcess::Start(options);
  EXPECT_THAT(server->address().ToString(), HasSubstr("0.0.0.0:"));
}

TEST_F(ServerTest, CheckOnlyIsAnsweredAndForgotten) {
  const auto server = ServerProcess::Start(Options());
  FakeSource source(server->address());
  proto::Begin begin = source.MakeBegin(FreePid());
  begin.set_check_only(true);
  const absl::StatusOr<proto::BeginReply> reply = source.Begin(begin);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->blockers_size(), 0) << reply->DebugString();
  EXPECT_FALSE(reply->has_data_token());
  EXPECT_TRUE(absl::IsUnavailable(source.ExpectFailed()));
  server->WaitForSessions(0);
}

TEST_F(ServerTest, TakenPidIsRefusedBeforeAnythingIsSent) {
  const auto server = ServerProcess::Start(Options());
  FakeSource source(server->address());
  const absl::StatusOr<proto::BeginReply> reply = source.Begin(source.MakeBegin(::getpid()));
  ASSERT_TRUE(reply.ok()) << reply.status();
  ASSERT_GE(reply->blockers_size(), 1);
  EXPECT_THAT(reply->DebugString(), HasSubstr(absl::StrCat(::getpid())));
  EXPECT_FALSE(reply->has_data_token());
  server->WaitForSessions(0);
}

TEST_F(ServerTest, MissingFileIsNamedInTheRefusal) {
  const auto server = ServerProcess::Start(Options());
  FakeSource source(server->address());
  proto::Begin begin = source.MakeBegin(FreePid());
  for (auto& file : *begin.mutable_preview()->mutable_files()) {
    if (file.reg().name() == "/bin/true") file.mutable_reg()->set_name("/no/such/program");
  }
  const absl::StatusOr<proto::BeginReply> reply = source.Begin(begin);
  ASSERT_TRUE(reply.ok()) << reply.status();
  ASSERT_GE(reply->blockers_size(), 1);
  EXPECT_THAT(reply->DebugString(), HasSubstr("/no/such/program"));
}

TEST_F(ServerTest, NonsensicalBeginIsToldSo) {
  const auto server = ServerProcess::Start(Options());
  for (int wrong = 0; wrong < 3; ++wrong) {
    FakeSource source(server->address());
    proto::Begin begin = source.MakeBegin(FreePid());
    if (wrong == 0) begin.set_session_id("short");
    if (wrong == 1) begin.set_pid(begin.pid() + 1);
    if (wrong == 2) begin.mutable_preview()->clear_mm();
    EXPECT_TRUE(absl::IsFailedPrecondition(source.Begin(begin).status())) << wrong;
  }
  ExpectServes(*server);
}

TEST_F(ServerTest, GarbageOnThePortIsClosed) {
  const auto server = ServerProcess::Start(Options());
  const base::UniqueFd raw = ConnectRaw(*server);
  ASSERT_EQ(::send(raw.get(), "GET / HTTP/1.0\r\n\r\n", 18, MSG_NOSIGNAL), 18);
  ExpectClosed(raw.get());
  ExpectServes(*server);
}

TEST_F(ServerTest, GarbageAfterTheMagicEndsOnlyItsOwnSession) {
  const auto server = ServerProcess::Start(Options());
  const base::UniqueFd raw = ConnectRaw(*server);
  const std::string bytes = "PRDCTL01" + std::string(100, '\xff');
  ASSERT_EQ(::send(raw.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL), 108);
  server->WaitForSessions(0);
  ExpectServes(*server);
}

TEST_F(ServerTest, DataConnectionWithAForeignTokenIsClosed) {
  const auto server = ServerProcess::Start(Options());
  const base::UniqueFd raw = ConnectRaw(*server);
  const std::string bytes = "PRDDAT01" + std::string(16, 't');
  ASSERT_EQ(::send(raw.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL), 24);
  ExpectClosed(raw.get());
  ExpectServes(*server);
}

TEST_F(ServerTest, SilentPeersAreShownOutAndKeepNobodyWaiting) {
  ServerOptions options = Options();
  options.hello_timeout = absl::Milliseconds(300);
  options.max_half_open = 4;
  const auto server = ServerProcess::Start(options);
  std::vector<base::UniqueFd> silent;
  for (int i = 0; i < 8; ++i) silent.push_back(ConnectRaw(*server));
  ASSERT_EQ(::send(silent.back().get(), "PRDDAT01half", 12, MSG_NOSIGNAL), 12);
  silent.push_back(ConnectRaw(*server));
  ASSERT_EQ(::send(silent.back().get(), "PRDCTL01", 8, MSG_NOSIGNAL), 8);
  ExpectServes(*server);
  for (const base::UniqueFd& fd : silent) {
    // The last one is told why before it is closed.
    char bytes[512];
    ssize_t n = 1;
    while (n > 0) {
      ASSERT_EQ(*transport::WaitFor(fd.get(), POLLIN, Soon()), transport::WaitResult::kReady);
      n = ::recv(fd.get(), bytes, sizeof bytes, 0);
    }
  }
  server->WaitForSessions(0);
}

TEST_F(ServerTest, PingsAreAnsweredWithTheServersClocks) {
  const auto server = ServerProcess::Start(Options());
  FakeSource source(server->address());
  proto::Ping ping;
  ping.set_sender_monotonic_ns(7);
  ASSERT_TRUE(source.control().Send(proto::CONTROL_PING, ping, Soon()).ok());
  const auto pong = source.control().Expect<proto::Pong>(proto::CONTROL_PONG, Soon());
  ASSERT_TRUE(pong.ok()) << pong.status();
  EXPECT_EQ(pong->sender_monotonic_ns(), 7);
  EXPECT_GT(pong->receiver_monotonic_ns(), 0);
}

TEST_F(ServerTest, UnknownSessionIsDestroyedEverywhereFromThenOn) {
  const auto server = ServerProcess::Start(Options());
  FakeSource source(server->address());
  const std::string id = source.session_id();
  EXPECT_EQ(source.AskFate(id)->outcome(), proto::Fate::DESTROYED);
  FakeSource late(server->address());
  proto::Begin begin = late.MakeBegin(FreePid());
  begin.set_session_id(id);
  EXPECT_TRUE(absl::IsFailedPrecondition(late.Begin(begin).status()));
  EXPECT_EQ(FateAfterRestart(id), proto::Fate::DESTROYED);
}

TEST_F(ServerTest, SessionThatPreparesIsPendingUntilItsSourceVanishes) {
  const auto server = ServerProcess::Start(Options());
  FakeSource source(server->address());
  const pid_t pid = FreePid();
  source.BringRounds(pid);
  FakeSource asking(server->address());
  EXPECT_EQ(asking.AskFate(source.session_id())->outcome(), proto::Fate::PENDING);
  source.Vanish();
  EXPECT_TRUE(WaitForProcess(pid, false));
  server->WaitForSessions(1);  // the one that asks
  EXPECT_EQ(asking.AskFate(source.session_id())->outcome(), proto::Fate::DESTROYED);
  ExpectServes(*server);
}

TEST_F(ServerTest, CancelledSessionLeavesNothing) {
  const auto server = ServerProcess::Start(Options());
  FakeSource source(server->address());
  const pid_t pid = FreePid();
  source.BringRounds(pid);
  ASSERT_TRUE(source.control().Send(proto::CONTROL_CANCEL, proto::Cancel(), Soon()).ok());
  EXPECT_TRUE(WaitForProcess(pid, false));
  server->WaitForSessions(0);
  EXPECT_EQ(FateAfterRestart(source.session_id()), proto::Fate::DESTROYED);
}

TEST_F(ServerTest, SourceThatVanishesBeforeItsDataConnectionLeavesNothing) {
  const auto server = ServerProcess::Start(Options());
  FakeSource source(server->address());
  ASSERT_TRUE(source.Begin(source.MakeBegin(FreePid())).ok());
  source.Vanish();
  server->WaitForSessions(0);
  EXPECT_EQ(FateAfterRestart(source.session_id()), proto::Fate::DESTROYED);
}

TEST_F(ServerTest, SilenceIsToldFromWork) {
  ServerOptions options = Options();
  options.silence_limit = absl::Seconds(2);
  const auto server = ServerProcess::Start(options);
  FakeSource source(server->address());
  const pid_t pid = FreePid();
  source.BringRounds(pid);
  // Rounds keep coming for longer than that, and not a word on the control connection.
  uint64_t round = 0;
  for (const base::Stopwatch watch; watch.Elapsed() < absl::Seconds(4);) {
    ASSERT_TRUE(source.data().EndRound(++round).ok());
    const absl::Status acknowledged = source.data().ReadAcknowledge(round, Soon());
    ASSERT_TRUE(acknowledged.ok()) << acknowledged;
    ::poll(nullptr, 0, 50);
  }
  // And then nothing at all.
  EXPECT_THAT(std::string(source.ExpectFailed().message()), HasSubstr("nothing for 2s"));
  EXPECT_TRUE(WaitForProcess(pid, false));
}

TEST_F(ServerTest, BadDataFrameEndsTheSessionWithItsReason) {
  const auto server = ServerProcess::Start(Options());
  FakeSource source(server->address());
  const pid_t pid = FreePid();
  source.BringRounds(pid);
  ASSERT_EQ(::send(source.data().fd(), std::string(64, 'x').data(), 64, MSG_NOSIGNAL), 64);
  const absl::Status failed = source.ExpectFailed();
  EXPECT_TRUE(absl::IsFailedPrecondition(failed)) << failed;
  EXPECT_THAT(failed.message(), HasSubstr("landing"));
  EXPECT_TRUE(WaitForProcess(pid, false));
}

TEST_F(ServerTest, PrepareOutOfPlaceOrWithoutSenseIsRefused) {
  const auto server = ServerProcess::Start(Options());
  {
    FakeSource source(server->address());
    const pid_t pid = FreePid();
    source.BringRounds(pid);
    proto::Prepare prepare;
    *prepare.mutable_state() = source.MakeBegin(pid).preview();
    prepare.mutable_state()->mutable_threads(0)->mutable_extra()->clear_xsave();
    prepare.set_final_round(1);
    ASSERT_TRUE(source.control().Send(proto::CONTROL_PREPARE, prepare, Soon()).ok());
    EXPECT_TRUE(absl::IsFailedPrecondition(source.ExpectFailed()));
    EXPECT_TRUE(WaitForProcess(pid, false));
  }
  FakeSource source(server->address());
  proto::Begin begin = source.MakeBegin(FreePid());
  ASSERT_TRUE(source.Begin(begin).ok());
  ASSERT_TRUE(source.control()
                  .Send(
                      proto::CONTROL_COMMIT,
                      [&] {
                        proto::Commit commit;
                        commit.set_session_id(begin.session_id());
                        return commit;
                      }(),
                      Soon())
                  .ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(source.ExpectFailed()));
  ExpectServes(*server);
}

TEST_F(ServerTest, SessionsAtTheSameTimeDoNotMeet) {
  const auto server = ServerProcess::Start(Options());
  FakeSource first(server->address());
  FakeSource second(server->address());
  const pid_t first_pid = FreePid();
  const pid_t second_pid = FreePid();
  first.BringRounds(first_pid);
  second.BringRounds(second_pid);
  server->WaitForSessions(2);
  first.Vanish();
  EXPECT_TRUE(WaitForProcess(first_pid, false));
  ASSERT_TRUE(second.data().EndRound(1).ok());
  EXPECT_TRUE(second.data().ReadAcknowledge(1, Soon()).ok());
}

TEST_F(ServerTest, KilledSessionTakesItsLandingAlongAndNothingElse) {
  const auto server = ServerProcess::Start(Options());
  FakeSource source(server->address());
  const pid_t pid = FreePid();
  source.BringRounds(pid);
  ASSERT_EQ(::kill(server->WaitForSessions(1).front(), SIGKILL), 0);
  EXPECT_TRUE(WaitForProcess(pid, false));
  FakeSource asking(server->address());
  EXPECT_EQ(asking.AskFate(source.session_id())->outcome(), proto::Fate::DESTROYED);
  ExpectServes(*server);
}

TEST_F(ServerTest, KilledServerTakesUncommittedSessionsAlong) {
  auto server = ServerProcess::Start(Options());
  FakeSource source(server->address());
  const pid_t pid = FreePid();
  source.BringRounds(pid);
  server->Signal(SIGKILL);
  EXPECT_EQ(server->Wait(), -1);
  EXPECT_TRUE(absl::IsFailedPrecondition(source.ExpectFailed()));
  EXPECT_TRUE(WaitForProcess(pid, false));
  EXPECT_EQ(FateAfterRestart(source.session_id()), proto::Fate::DESTROYED);
}

TEST_F(ServerTest, SigtermCancelsSessionsAndEndsCleanly) {
  for (const int signal_number : {SIGTERM, SIGINT}) {
    auto server = ServerProcess::Start(Options());
    FakeSource source(server->address());
    const pid_t pid = FreePid();
    source.BringRounds(pid);
    server->Signal(signal_number);
    const absl::Status failed = source.ExpectFailed();
    EXPECT_THAT(failed.message(), HasSubstr("ending"));
    EXPECT_EQ(server->Wait(), 0);
    EXPECT_TRUE(WaitForProcess(pid, false));
  }
}

TEST_F(ServerTest, OnceEndsWithTheFirstRealSession) {
  ServerOptions options = Options();
  options.once = true;
  auto server = ServerProcess::Start(options);
  ExpectServes(*server);  // a question is no session
  {
    FakeSource source(server->address());
    source.BringRounds(FreePid(), /*rounds_only=*/true);
    ASSERT_TRUE(source.control().Send(proto::CONTROL_DONE, proto::Done(), Soon()).ok());
  }
  EXPECT_EQ(server->Wait(), kSessionSucceeded);
}

TEST_F(ServerTest, OnceReportsAFailedSession) {
  ServerOptions options = Options();
  options.once = true;
  auto server = ServerProcess::Start(options);
  FakeSource source(server->address());
  source.BringRounds(FreePid());
  source.Vanish();
  EXPECT_EQ(server->Wait(), kSessionFailed);
}

TEST_F(ServerTest, RoundsOnlyBuildsNothingAndEndsWithItsSource) {
  const auto server = ServerProcess::Start(Options());
  FakeSource source(server->address());
  const pid_t pid = FreePid();
  source.BringRounds(pid, /*rounds_only=*/true);
  source.Vanish();
  EXPECT_TRUE(WaitForProcess(pid, false));
  server->WaitForSessions(0);
}

}  // namespace
}  // namespace predump::pageserver
