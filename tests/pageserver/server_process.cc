#include "tests/pageserver/server_process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "src/base/atomic_file.h"
#include "src/base/clock.h"
#include "src/transport/socket.h"
#include "tests/pageserver/handmade_process.h"

namespace predump::pageserver {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);
constexpr uint64_t kPage = 0x7e0000000000;

void Pause() { ::poll(nullptr, 0, 2); }

}  // namespace

std::unique_ptr<ServerProcess> ServerProcess::Start(ServerOptions options) {
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  int ready[2];
  EXPECT_EQ(::pipe2(ready, O_CLOEXEC), 0);
  const pid_t pid = ::fork();
  EXPECT_GE(pid, 0);
  if (pid == 0) {
    ::close(ready[0]);
    const absl::StatusOr<int> result = RunServer(options, [&](const std::string& address) {
      const std::string line = address + "\n";
      if (::write(ready[1], line.data(), line.size()) < 0) ::_exit(99);
      ::close(ready[1]);
    });
    ::_exit(result.ok() ? *result : 98);
  }
  ::close(ready[1]);
  std::string line;
  char byte;
  while (::read(ready[0], &byte, 1) == 1 && byte != '\n') line.push_back(byte);
  ::close(ready[0]);
  const absl::StatusOr<transport::Address> address = transport::Address::Parse(line);
  EXPECT_TRUE(address.ok()) << line;
  return std::unique_ptr<ServerProcess>(
      new ServerProcess(pid, address.ok() ? *address : transport::Address()));
}

ServerProcess::~ServerProcess() {
  if (exit_status_.has_value()) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

std::vector<pid_t> ServerProcess::WaitForSessions(size_t count) const {
  const base::Stopwatch watch;
  std::vector<pid_t> sessions;
  while (watch.Elapsed() < kPatience) {
    sessions.clear();
    const absl::StatusOr<std::string> text =
        base::ReadWholeFile(absl::StrCat("/proc/", pid_, "/task/", pid_, "/children"));
    if (!text.ok()) break;
    for (const absl::string_view word : absl::StrSplit(*text, ' ', absl::SkipWhitespace())) {
      pid_t pid = 0;
      if (absl::SimpleAtoi(word, &pid)) sessions.push_back(pid);
    }
    if (sessions.size() == count) return sessions;
    Pause();
  }
  ADD_FAILURE() << "there are " << sessions.size() << " sessions instead of " << count;
  return sessions;
}

void ServerProcess::Signal(int signal_number) const { EXPECT_EQ(::kill(pid_, signal_number), 0); }

int ServerProcess::Wait() {
  const base::Stopwatch watch;
  while (!exit_status_.has_value() && watch.Elapsed() < kPatience) {
    int status = 0;
    if (::waitpid(pid_, &status, WNOHANG) == pid_) {
      exit_status_ = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    } else {
      Pause();
    }
  }
  return exit_status_.value_or(-1);
}

pid_t FreePid() {
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(0);
  EXPECT_EQ(::waitpid(pid, nullptr, 0), pid);
  return pid;
}

bool WaitForProcess(pid_t pid, bool there) {
  const base::Stopwatch watch;
  while (watch.Elapsed() < kPatience) {
    // Orphans are ours to reap, being their subreaper.
    ::waitpid(pid, nullptr, WNOHANG | __WALL);
    if ((::kill(pid, 0) == 0) == there) return true;
    Pause();
  }
  return false;
}

FakeSource::FakeSource(const transport::Address& address)
    : address_(address), session_id_(kSessionIdBytes, '\0') {
  EXPECT_EQ(::getrandom(session_id_.data(), session_id_.size(), 0), kSessionIdBytes);
  auto socket = transport::Connect(address, {}, Soon());
  EXPECT_TRUE(socket.ok()) << socket.status();
  control_.emplace(*transport::ControlChannel::Adopt(*std::move(socket)));
  EXPECT_TRUE(control_->SendMagic(Soon()).ok());
  absl::StatusOr<proto::ServerHello> hello = transport::ClientHandshake(*control_, {}, Soon());
  EXPECT_TRUE(hello.ok()) << hello.status();
  if (hello.ok()) hello_ = *std::move(hello);
}

proto::Begin FakeSource::MakeBegin(pid_t pid) const {
  proto::Begin begin;
  begin.set_session_id(session_id_);
  begin.set_pid(static_cast<uint32_t>(pid));
  begin.add_tids(static_cast<uint32_t>(pid));
  *begin.mutable_preview() = HandmadeState(pid);
  return begin;
}

absl::StatusOr<proto::BeginReply> FakeSource::Begin(const proto::Begin& begin) {
  const absl::Status sent = control_->Send(proto::CONTROL_BEGIN, begin, Soon());
  if (!sent.ok()) return sent;
  return control_->Expect<proto::BeginReply>(proto::CONTROL_BEGIN_REPLY, Soon());
}

void FakeSource::OpenData(const std::string& token) {
  auto socket = transport::Connect(address_, {}, Soon());
  ASSERT_TRUE(socket.ok()) << socket.status();
  auto data = transport::DataWriter::Start(*std::move(socket), token);
  ASSERT_TRUE(data.ok()) << data.status();
  data_.emplace(*std::move(data));
}

void FakeSource::BringRounds(pid_t pid, bool rounds_only) {
  proto::Begin begin = MakeBegin(pid);
  begin.set_rounds_only(rounds_only);
  const absl::StatusOr<proto::BeginReply> reply = Begin(begin);
  ASSERT_TRUE(reply.ok()) << reply.status();
  ASSERT_EQ(reply->blockers_size(), 0) << reply->DebugString();
  OpenData(reply->data_token());
  transport::MapRecord map = {};
  map.start = kPage;
  map.bytes = 4096;
  map.prot = 3;
  ASSERT_TRUE(data_->Map(map, "").ok());
  const std::vector<transport::WireExtent> pages = {{kPage, 4096}};
  ASSERT_TRUE(data_->PagesHeader(pages).ok());
  const std::string bytes(4096, 'p');
  ASSERT_EQ(::write(data_->fd(), bytes.data(), bytes.size()), 4096);
  ASSERT_TRUE(data_->EndRound(0).ok());
  const absl::Status acknowledged = data_->ReadAcknowledge(0, Soon());
  ASSERT_TRUE(acknowledged.ok()) << acknowledged;
  ASSERT_TRUE(WaitForProcess(pid, true));
}

absl::StatusOr<proto::Fate> FakeSource::AskFate(const std::string& session_id) {
  proto::QueryFate query;
  query.set_session_id(session_id);
  const absl::Status sent = control_->Send(proto::CONTROL_QUERY_FATE, query, Soon());
  if (!sent.ok()) return sent;
  return control_->Expect<proto::Fate>(proto::CONTROL_FATE, Soon());
}

absl::Status FakeSource::ExpectFailed() {
  return control_->Expect<proto::Done>(proto::CONTROL_DONE, Soon()).status();
}

void FakeSource::Vanish() {
  data_.reset();
  control_.reset();
}

}  // namespace predump::pageserver
