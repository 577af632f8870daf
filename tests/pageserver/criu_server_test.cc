// CRIU clients at a whole server, and what CRIU's own page server makes of the same bytes.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/atomic_file.h"
#include "src/transport/socket.h"
#include "tests/pageserver/criu_peer.h"
#include "tests/pageserver/server_process.h"
#include "tests/support/child_process.h"
#include "tests/support/temp_dir.h"

namespace predump::pageserver {
namespace {

namespace protocol = transport::page_server;
using protocol::HeaderSize;
using test_support::ChildProcess;
using test_support::RunCommand;
using ::testing::HasSubstr;

constexpr uint64_t kTask = protocol::TaskObject(7);
constexpr uint64_t kMemory = protocol::SharedMemoryObject(4242);

CriuPeer Connect(const transport::Address& address, HeaderSize size) {
  auto socket = transport::Connect(address, {}, Soon());
  EXPECT_TRUE(socket.ok()) << socket.status();
  return CriuPeer(*std::move(socket), size);
}

// What one client sends; true where all was answered as it should be.
using Conversation = std::function<bool(CriuPeer& peer)>;

bool First(CriuPeer& peer) {
  return peer.AskParent(kTask) == 0 && peer.Open(kTask) == 0 &&
         peer.SendPages(kTask, 0x400000, 3, 1) && peer.SendPages(kTask, 0x403000, 70, 2, 6) &&
         peer.SendPages(kTask, 0x7f0000000000, 1000, 3, 6) && peer.Open(kMemory) == 0 &&
         peer.SendPages(kMemory, 0, 20, 4) && peer.SendPages(kMemory, 0x20000, 1, 5) &&
         peer.Close() == 0;
}

bool Second(CriuPeer& peer) {
  return peer.AskParent(kTask) == 1 && peer.Open(kTask) == 1 && peer.SendHole(kTask, 0x400000, 2) &&
         peer.SendPages(kTask, 0x402000, 1, 6) && peer.SendHole(kTask, 0x403000, 70) &&
         peer.SendPages(kTask, 0x7f0000000000, 2, 7, 6) &&
         peer.SendHole(kTask, 0x7f0000002000, 900) && peer.Close() == 0;
}

class CriuServerTest : public ::testing::Test {
 protected:
  ServerOptions Options() const {
    ServerOptions options;
    options.listen = *transport::Address::Parse("127.0.0.1:0");
    options.state_directory = directory_.File("state");
    options.images_directory = directory_.File("store");
    return options;
  }
  std::string Stored(const std::string& name) const {
    return absl::StrCat(directory_.File("store"), "/", name);
  }

  // Serves `conversation` by `criu page-server` into `path`. False where that does not run on this
  // kernel, which is then printed.
  static bool ServeByCriu(const std::string& path, const std::string& parent,
                          const Conversation& conversation) {
    std::filesystem::create_directory(path);
    // CRIU tells nobody which port it got: take one that was free a moment ago.
    std::string port;
    {
      const auto listener = transport::Listen(*transport::Address::Parse("127.0.0.1:0"));
      port = listener->address.ToString();
      port = port.substr(port.rfind(':') + 1);
    }
    int ready[2];
    if (::pipe2(ready, O_CLOEXEC) != 0) return false;
    const base::UniqueFd ready_end(ready[0]);
    base::UniqueFd said(ready[1]);
    test_support::StartOptions options;
    options.argv = {"criu",   "page-server", "-D", path,  "--address",   "127.0.0.1",
                    "--port", port,          "-o", "log", "--status-fd", "1"};
    if (!parent.empty()) {
      options.argv.insert(options.argv.end(), {"--prev-images-dir", parent});
    }
    options.stdout_fd = said.get();
    auto criu = ChildProcess::Start(options);
    if (!criu.ok()) return false;
    said = base::UniqueFd();
    char byte;
    if (::read(ready_end.get(), &byte, 1) != 1) return false;  // it has said why
    {
      CriuPeer peer = Connect(*transport::Address::Parse("127.0.0.1:" + port), HeaderSize::kOld);
      EXPECT_TRUE(conversation(peer));
    }
    const auto exit = criu->Wait(absl::Seconds(20));
    EXPECT_TRUE(exit.ok() && exit->ok())
        << base::ReadWholeFile(path + "/log").value_or("it left no log");
    return true;
  }

  // What crit(1) prints of a pagemap, but for the number of its pages file.
  static std::string Decode(const std::string& path, const std::string& pages_id) {
    const auto decoded = RunCommand({"crit", "decode", "-i", path});
    EXPECT_TRUE(decoded.ok() && decoded->exit.ok()) << path;
    return absl::StrReplaceAll(decoded->output,
                               {{absl::StrCat("\"pages_id\": ", pages_id), "\"pages_id\": N"}});
  }

  static void ExpectSame(const std::string& ours, const std::string& theirs,
                         const std::string& pagemap, const std::string& our_id,
                         const std::string& their_id) {
    const std::string decoded = Decode(absl::StrCat(ours, "/", pagemap), our_id);
    EXPECT_THAT(decoded, HasSubstr("\"pages_id\": N"));
    EXPECT_EQ(decoded, Decode(absl::StrCat(theirs, "/", pagemap), their_id));
    const auto pages = base::ReadWholeFile(absl::StrCat(ours, "/pages-", our_id, ".img"));
    const auto criu_pages = base::ReadWholeFile(absl::StrCat(theirs, "/pages-", their_id, ".img"));
    ASSERT_TRUE(pages.ok() && criu_pages.ok()) << pages.status() << criu_pages.status();
    EXPECT_FALSE(pages->empty());
    EXPECT_TRUE(*pages == *criu_pages);
  }

  test_support::TempDir directory_ = *test_support::TempDir::Create();
};

TEST_F(CriuServerTest, StoresByteForByteWhatCriusOwnServerStores) {
  const std::string first = directory_.File("criu-1");
  const std::string second = directory_.File("criu-2");
  if (!ServeByCriu(first, "", First)) {
    GTEST_SKIP() << "`criu page-server` does not run here (Debian's 3.17.1 does in the lab)";
  }
  ASSERT_TRUE(ServeByCriu(second, "../criu-1", Second));
  const auto server = ServerProcess::Start(Options());
  for (const auto conversation : {First, Second}) {
    CriuPeer peer = Connect(server->address(), HeaderSize::kOld);
    EXPECT_TRUE(conversation(peer));
  }
  ExpectSame(Stored("1"), first, "pagemap-7.img", "1", "65537");
  ExpectSame(Stored("1"), first, "pagemap-shmem-4242.img", "2", "65538");
  ExpectSame(Stored("2"), second, "pagemap-7.img", "1", "65537");
}

TEST_F(CriuServerTest, ClientsComeOneAfterAnotherWithEitherHeader) {
  const auto server = ServerProcess::Start(Options());
  CriuPeer first = Connect(server->address(), HeaderSize::kNew);
  EXPECT_TRUE(First(first));
  // The next one comes before this one has left.
  CriuPeer second = Connect(server->address(), HeaderSize::kOld);
  EXPECT_TRUE(Second(second));
  EXPECT_EQ(std::filesystem::read_symlink(Stored("latest")), "2");
  first.Leave();
  second.Leave();
  server->WaitForSessions(0);
}

// It connects, then freezes its processes, and only then says anything.
TEST_F(CriuServerTest, MayBeSilentForLongerThanPredump) {
  ServerOptions options = Options();
  options.hello_timeout = absl::Milliseconds(100);
  const auto server = ServerProcess::Start(options);
  CriuPeer peer = Connect(server->address(), HeaderSize::kOld);
  // Closed after hello_timeout, the connection would become readable.
  EXPECT_EQ(*transport::WaitFor(peer.fd(), POLLIN, transport::Deadline::After(absl::Seconds(1))),
            transport::WaitResult::kDeadline);
  EXPECT_TRUE(First(peer));
}

TEST_F(CriuServerTest, AreTurnedAwayWithoutAStore) {
  ServerOptions options = Options();
  options.images_directory.clear();
  const auto server = ServerProcess::Start(options);
  CriuPeer peer = Connect(server->address(), HeaderSize::kOld);
  EXPECT_EQ(peer.Open(kTask), -1);
  server->WaitForSessions(0);
}

TEST_F(CriuServerTest, CountAsSessions) {
  ServerOptions options = Options();
  options.once = true;
  {
    const auto server = ServerProcess::Start(options);
    CriuPeer peer = Connect(server->address(), HeaderSize::kNew);
    EXPECT_TRUE(First(peer));
    peer.Leave();
    EXPECT_EQ(server->Wait(), kSessionSucceeded);
  }
  const auto server = ServerProcess::Start(options);
  CriuPeer peer = Connect(server->address(), HeaderSize::kNew);
  EXPECT_EQ(peer.Open(kTask), 1);
  peer.Leave();
  EXPECT_EQ(server->Wait(), kSessionFailed);
  EXPECT_EQ(std::filesystem::read_symlink(Stored("latest")), "1");
}

TEST_F(CriuServerTest, AServerThatEndsKeepsNothingHalf) {
  const auto server = ServerProcess::Start(Options());
  CriuPeer peer = Connect(server->address(), HeaderSize::kNew);
  EXPECT_EQ(peer.Open(kTask), 0);
  EXPECT_TRUE(peer.SendPages(kTask, 0x10000, 4, 1));
  EXPECT_TRUE(std::filesystem::exists(Stored(".1.partial")));
  server->Signal(SIGTERM);
  EXPECT_EQ(server->Wait(), 0);
  EXPECT_FALSE(std::filesystem::exists(Stored(".1.partial")));
  EXPECT_EQ(peer.Close(), -1);
}

}  // namespace
}  // namespace predump::pageserver
