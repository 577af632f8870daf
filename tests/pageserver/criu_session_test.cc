#include "src/pageserver/criu_session.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/atomic_file.h"
#include "src/images/page_chain.h"
#include "src/transport/socket.h"
#include "tests/pageserver/criu_peer.h"
#include "tests/support/child_process.h"
#include "tests/support/temp_dir.h"

namespace predump::pageserver {
namespace {

namespace protocol = transport::page_server;
using images::PageChain;
using images::PagemapEntry;
using images::PagesOf;
using protocol::HeaderSize;
using ::testing::HasSubstr;

constexpr uint64_t kTask = protocol::TaskObject(7);
constexpr PagesOf kTaskPages{PagesOf::Kind::kTask, 7};
constexpr uint64_t kHigh = 0x7f0000000000;

// Serves one client in a thread of its own, reading the first bytes as the listener does.
class Served {
 public:
  Served(const images::ImageStore& store, HeaderSize size, CriuClientOptions options = {}) {
    int fds[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, stop_), 0);
    peer_ = std::make_unique<CriuPeer>(base::UniqueFd(fds[0]), size);
    thread_ = std::thread([this, fd = fds[1], &store, options] {
      base::UniqueFd socket(fd);
      char first[8];
      if (::recv(fd, first, sizeof first, MSG_WAITALL) != sizeof first) return;
      EXPECT_TRUE(
          protocol::IsFirstMessage(reinterpret_cast<const unsigned char*>(std::begin(first))));
      EXPECT_TRUE(transport::SetBlocking(fd, false).ok());
      result_ = ServeCriuClient(std::move(socket), stop_[0], std::string(first, sizeof first),
                                store, options);
    });
  }
  ~Served() {
    peer_->Leave();
    if (thread_.joinable()) thread_.join();
    for (const int fd : stop_) ::close(fd);
  }

  CriuPeer& peer() { return *peer_; }
  void Stop() const { ASSERT_EQ(::send(stop_[1], "", 1, MSG_NOSIGNAL), 1); }

  // What came of it, once the client has left.
  absl::StatusOr<CriuClientResult> Result() {
    peer_->Leave();
    thread_.join();
    return result_;
  }

 private:
  int stop_[2] = {-1, -1};
  std::unique_ptr<CriuPeer> peer_;
  absl::StatusOr<CriuClientResult> result_ = absl::UnknownError("did not serve");
  std::thread thread_;
};

class CriuSessionTest : public ::testing::TestWithParam<HeaderSize> {
 protected:
  CriuSessionTest() { store_.emplace(*images::ImageStore::Open(directory_.File("store"))); }

  std::string StorePath(const std::string& name) const {
    return absl::StrCat(store_->path(), "/", name);
  }
  int DirectoriesInStore() const {
    return static_cast<int>(std::count_if(
        std::filesystem::directory_iterator(store_->path()), std::filesystem::directory_iterator(),
        [](const auto& entry) { return entry.is_directory() && !entry.is_symlink(); }));
  }

  // Stores pages 0x10000-0x18000 and kHigh-kHigh+0x2000 of task 7 with mark 1.
  void StoreFirst() {
    Served served(*store_, HeaderSize::kOld);
    EXPECT_EQ(served.peer().Open(kTask), 0);
    EXPECT_TRUE(served.peer().SendPages(kTask, 0x10000, 8, 1));
    EXPECT_TRUE(served.peer().SendPages(kTask, kHigh, 2, 1, 6));
    EXPECT_EQ(served.peer().Close(), 0);
    EXPECT_TRUE(served.Result().ok());
  }

  PageChain OpenChain(const PagesOf& of = kTaskPages) const {
    const auto latest = store_->OpenLatest();
    EXPECT_TRUE(latest.ok()) << latest.status();
    absl::StatusOr<PageChain> chain = PageChain::Open(latest->get(), of);
    EXPECT_TRUE(chain.ok()) << chain.status();
    return *std::move(chain);
  }

  static void ExpectPages(const PageChain& chain, uint64_t address, uint64_t pages, unsigned mark) {
    for (uint64_t at = address; at < address + pages * 4096; at += 4096) {
      std::string page(4096, '\0');
      const absl::Status status =
          chain.Read(at, std::as_writable_bytes(std::span(page.data(), page.size())));
      ASSERT_TRUE(status.ok()) << status;
      ASSERT_TRUE(page == CriuPeer::ContentOf(at, mark)) << std::hex << at;
    }
  }

  // Sends what `send` does after an open, and expects that it is refused and nothing is kept.
  template <typename Send>
  std::string Refusal(absl::StatusCode code, const Send& send) {
    const int before = DirectoriesInStore();
    Served served(*store_, HeaderSize::kNew);
    EXPECT_GE(served.peer().Open(kTask), 0);
    send(served.peer());
    const auto result = served.Result();
    EXPECT_EQ(result.status().code(), code) << result.status();
    EXPECT_EQ(DirectoriesInStore(), before);
    return std::string(result.status().message());
  }

  test_support::TempDir directory_ = *test_support::TempDir::Create();
  std::optional<images::ImageStore> store_;
};

INSTANTIATE_TEST_SUITE_P(BothHeaders, CriuSessionTest,
                         ::testing::Values(HeaderSize::kOld, HeaderSize::kNew),
                         [](const auto& size) {
                           return size.param == HeaderSize::kOld ? "Old" : "New";
                         });

TEST_P(CriuSessionTest, StoresWhatAPreDumpSends) {
  Served served(*store_, GetParam());
  CriuPeer& peer = served.peer();
  EXPECT_EQ(peer.AskParent(kTask), 0);
  EXPECT_EQ(peer.AskParent(protocol::TaskObject(8)), 0);
  EXPECT_EQ(peer.Open(kTask), 0);
  EXPECT_TRUE(peer.SendPages(kTask, 0x10000, 8, 1));
  EXPECT_TRUE(peer.SendPages(kTask, kHigh, 300, 2, 6));
  EXPECT_EQ(peer.Open(protocol::TaskObject(8)), 0);
  EXPECT_TRUE(peer.SendPages(protocol::TaskObject(8), 0x10000, 1, 3));
  EXPECT_EQ(peer.Open(protocol::SharedMemoryObject(0x123456789a)), 0);
  EXPECT_TRUE(peer.SendPages(protocol::SharedMemoryObject(0x123456789a), 0, 2, 4));
  EXPECT_EQ(peer.Close(), 0);
  const auto result = served.Result();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->path, StorePath("1"));
  EXPECT_EQ(result->objects, 3u);
  EXPECT_EQ(result->present, 311u);
  ExpectPages(OpenChain(), 0x10000, 8, 1);
  ExpectPages(OpenChain(), kHigh, 300, 2);
  ExpectPages(OpenChain({PagesOf::Kind::kTask, 8}), 0x10000, 1, 3);
  ExpectPages(OpenChain({PagesOf::Kind::kSharedMemory, 0x123456789a}), 0, 2, 4);
}

TEST_P(CriuSessionTest, BuildsOnTheLatest) {
  StoreFirst();
  Served served(*store_, GetParam());
  CriuPeer& peer = served.peer();
  EXPECT_EQ(peer.AskParent(kTask), 1);
  EXPECT_EQ(peer.AskParent(protocol::TaskObject(8)), 0);
  EXPECT_EQ(peer.Open(kTask), 1);
  EXPECT_TRUE(peer.SendHole(kTask, 0x10000, 3));
  EXPECT_TRUE(peer.SendPages(kTask, 0x13000, 1, 2));
  EXPECT_TRUE(peer.SendHole(kTask, 0x14000, 2));
  EXPECT_TRUE(peer.SendHole(kTask, kHigh + 0x1000, 1));
  EXPECT_EQ(peer.Open(protocol::TaskObject(8)), 0);
  EXPECT_TRUE(peer.SendPages(protocol::TaskObject(8), 0x10000, 1, 3));
  EXPECT_EQ(peer.Send(protocol::kForceClose, 0), true);
  EXPECT_EQ(peer.CloseAnswer(), 0);
  const auto result = served.Result();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->in_parent, 6u);
  const PageChain chain = OpenChain();
  ExpectPages(chain, 0x10000, 3, 1);
  ExpectPages(chain, 0x13000, 1, 2);
  ExpectPages(chain, 0x14000, 2, 1);
  ExpectPages(chain, kHigh + 0x1000, 1, 1);
  EXPECT_EQ(chain.Find(0x16000), nullptr);
  EXPECT_EQ(chain.Find(kHigh), nullptr);
}

TEST_P(CriuSessionTest, SaysThatThereIsNoParentWhereNoneIsWanted) {
  StoreFirst();
  CriuClientOptions options;
  options.no_parent = true;
  Served served(*store_, GetParam(), options);
  EXPECT_EQ(served.peer().AskParent(kTask), 0);
  EXPECT_EQ(served.peer().Open(kTask), 0);
  EXPECT_TRUE(served.peer().SendPages(kTask, 0x10000, 1, 2));
  EXPECT_EQ(served.peer().Close(), 0);
  ASSERT_TRUE(served.Result().ok());
  EXPECT_FALSE(std::filesystem::is_symlink(StorePath("2/parent")));
}

// What is broken is not built upon: then all pages come.
TEST_P(CriuSessionTest, SaysThatThereIsNoParentWhereItIsBroken) {
  StoreFirst();
  ASSERT_EQ(::truncate(StorePath("1/pages-1.img").c_str(), 100), 0);
  Served served(*store_, GetParam());
  EXPECT_EQ(served.peer().AskParent(kTask), 0);
  EXPECT_EQ(served.peer().Open(kTask), 0);
  EXPECT_TRUE(served.peer().SendPages(kTask, 0x10000, 1, 2));
  EXPECT_EQ(served.peer().Close(), 0);
  EXPECT_TRUE(served.Result().ok());
}

TEST_P(CriuSessionTest, TakesPayloadInAnyPieces) {
  Served served(*store_, GetParam());
  CriuPeer& peer = served.peer();
  EXPECT_EQ(peer.Open(kTask), 0);
  EXPECT_TRUE(peer.Send(0x00040006, kTask, 0x10000, 2));
  const std::string pages = CriuPeer::ContentOf(0x10000, 1) + CriuPeer::ContentOf(0x11000, 1);
  for (size_t at = 0; at < pages.size(); at += 1000) {
    EXPECT_TRUE(peer.SendBytes(pages.substr(at, 1000)));
  }
  EXPECT_EQ(peer.Close(), 0);
  ASSERT_TRUE(served.Result().ok());
  ExpectPages(OpenChain(), 0x10000, 2, 1);
}

TEST_P(CriuSessionTest, PutsRunsInOrder) {
  Served served(*store_, GetParam());
  CriuPeer& peer = served.peer();
  EXPECT_EQ(peer.Open(kTask), 0);
  EXPECT_TRUE(peer.SendPages(kTask, kHigh, 2, 1));
  EXPECT_TRUE(peer.SendPages(kTask, 0x20000, 1, 2));
  EXPECT_TRUE(peer.SendPages(kTask, 0x10000, 3, 3));
  EXPECT_TRUE(peer.SendPages(kTask, 0x13000, 1, 4));
  EXPECT_EQ(peer.Close(), 0);
  ASSERT_TRUE(served.Result().ok());
  const PageChain chain = OpenChain();
  ExpectPages(chain, 0x10000, 3, 3);
  ExpectPages(chain, 0x13000, 1, 4);
  ExpectPages(chain, 0x20000, 1, 2);
  ExpectPages(chain, kHigh, 2, 1);
  EXPECT_FALSE(std::filesystem::exists(StorePath("1/pages-1.img.ordered")));
}

TEST_F(CriuSessionTest, KnowsTheTypesAndCommandsOfOldClients) {
  Served served(*store_, HeaderSize::kOld);
  CriuPeer& peer = served.peer();
  const uint64_t task = uint64_t{7} << 8 | 11;
  const uint64_t memory = uint64_t{99} << 8 | 28;
  EXPECT_TRUE(peer.Send(protocol::kOpen, task));  // not answered
  EXPECT_TRUE(peer.Send(protocol::kAdd, task, 0x10000, 1));
  EXPECT_TRUE(peer.SendBytes(CriuPeer::ContentOf(0x10000, 1)));
  EXPECT_TRUE(peer.Send(protocol::kAdd, memory, 0x3000, 1));  // opens by itself
  EXPECT_TRUE(peer.SendBytes(CriuPeer::ContentOf(0x3000, 2)));
  EXPECT_EQ(peer.Close(), 0);
  ASSERT_TRUE(served.Result().ok());
  ExpectPages(OpenChain(), 0x10000, 1, 1);
  ExpectPages(OpenChain({PagesOf::Kind::kSharedMemory, 99}), 0x3000, 1, 2);

  Served second(*store_, HeaderSize::kOld);
  EXPECT_TRUE(second.peer().Send(protocol::kHole, task, 0x10000, 1));
  EXPECT_EQ(second.peer().Close(), 0);
  ASSERT_TRUE(second.Result().ok());
  ExpectPages(OpenChain(), 0x10000, 1, 1);
}

// A page that the parent lacks would be missing at the restore.
TEST_P(CriuSessionTest, RefusesHolesThatTheParentLacks) {
  StoreFirst();
  for (const auto& [address, pages, missing] :
       {std::tuple{uint64_t{0x14000}, 6, "0x18000"}, {uint64_t{0xf000}, 2, "0xf000"}}) {
    Served served(*store_, GetParam());
    EXPECT_EQ(served.peer().Open(kTask), 1);
    EXPECT_TRUE(served.peer().SendHole(kTask, address, static_cast<uint64_t>(pages)));
    EXPECT_GT(served.peer().Close(), 0) << "the client must not take this for stored";
    const auto result = served.Result();
    EXPECT_TRUE(absl::IsDataLoss(result.status())) << result.status();
    EXPECT_THAT(result.status().message(), HasSubstr(missing));
  }
  EXPECT_EQ(DirectoriesInStore(), 1);
  EXPECT_EQ(std::filesystem::read_symlink(StorePath("latest")), "1");
}

TEST_P(CriuSessionTest, RefusesHolesWithoutAParent) {
  Served served(*store_, GetParam());
  EXPECT_EQ(served.peer().Open(kTask), 0);
  EXPECT_TRUE(served.peer().SendHole(kTask, 0x10000, 1));
  // The protocol goes on to its end: cut off, the client might leave a frozen process.
  EXPECT_EQ(served.peer().Open(protocol::TaskObject(8)), 0);
  EXPECT_TRUE(served.peer().SendPages(protocol::TaskObject(8), 0x10000, 100, 3));
  EXPECT_GT(served.peer().Close(), 0);
  EXPECT_THAT(served.Result().status().message(), HasSubstr("there is no parent"));
  EXPECT_EQ(DirectoriesInStore(), 0);
}

TEST_P(CriuSessionTest, RefusesPagesThatCameTwice) {
  Served served(*store_, GetParam());
  EXPECT_EQ(served.peer().Open(kTask), 0);
  EXPECT_TRUE(served.peer().SendPages(kTask, 0x10000, 3, 1));
  EXPECT_TRUE(served.peer().SendPages(kTask, 0x12000, 1, 1));
  EXPECT_GT(served.peer().Close(), 0);
  EXPECT_THAT(served.Result().status().message(), HasSubstr("0x12000 came more than once"));
}

TEST_F(CriuSessionTest, RefusesAbsurdRuns) {
  const auto add = [](uint64_t address, uint64_t pages, uint32_t flags) {
    return [=](CriuPeer& peer) { peer.Send(flags << 16 | 6, kTask, address, pages); };
  };
  constexpr auto kCode = absl::StatusCode::kDataLoss;
  EXPECT_THAT(Refusal(kCode, add(0x10000, ~uint64_t{0}, 4)), HasSubstr("beyond"));
  EXPECT_THAT(Refusal(kCode, add(0x10000, uint64_t{1} << 52, 4)), HasSubstr("beyond"));
  EXPECT_THAT(Refusal(kCode, add(0x7ffffffff000, 1, 4)), HasSubstr("beyond"));
  EXPECT_THAT(Refusal(kCode, add(0x10001, 1, 4)), HasSubstr("begin at a page"));
  EXPECT_THAT(Refusal(kCode, add(0x10000, 0, 4)), HasSubstr("no pages"));
  EXPECT_THAT(Refusal(kCode, add(0x10000, 1, 0x84)), HasSubstr("flags"));
  EXPECT_THAT(Refusal(kCode, add(0x10000, 1, 5)), HasSubstr("both"));
  EXPECT_THAT(Refusal(kCode, add(0x10000, 1, 2)), HasSubstr("--lazy-pages"));
}

TEST_F(CriuSessionTest, RefusesWhatItDoesNotKnow) {
  constexpr auto kCode = absl::StatusCode::kDataLoss;
  EXPECT_THAT(Refusal(kCode, [](CriuPeer& peer) { peer.Send(8, kTask); }), HasSubstr("command"));
  // With flags it is no close.
  EXPECT_THAT(Refusal(kCode, [](CriuPeer& peer) { peer.Send(0x11023, 0); }), HasSubstr("0x11023"));
  EXPECT_THAT(Refusal(kCode, [](CriuPeer& peer) { peer.Send(protocol::kOpen2, 7 << 8 | 3); }),
              HasSubstr("0x703"));
  EXPECT_THAT(Refusal(kCode, [](CriuPeer& peer) { peer.Send(protocol::kOpen2, 1); }),
              HasSubstr("0x1"));
  EXPECT_THAT(Refusal(kCode, [](CriuPeer& peer) { peer.Send(protocol::kOpen2, kTask); }),
              HasSubstr("twice"));
  EXPECT_THAT(Refusal(absl::StatusCode::kUnimplemented,
                      [](CriuPeer& peer) { peer.Send(protocol::kGet, 7, 0x10000, 1); }),
              HasSubstr("lazy-pages"));
}

TEST_F(CriuSessionTest, KeepsNothingOfAClientThatLeaves) {
  constexpr auto kCode = absl::StatusCode::kUnavailable;
  EXPECT_THAT(Refusal(kCode, [](CriuPeer& peer) { peer.SendPages(kTask, 0x10000, 4, 1); }),
              HasSubstr("without closing"));
  EXPECT_THAT(Refusal(kCode,
                      [](CriuPeer& peer) {
                        peer.Send(0x00040006, kTask, 0x10000, 4);
                        peer.SendBytes(std::string(5000, 'x'));
                      }),
              HasSubstr("in the middle"));
  EXPECT_THAT(Refusal(kCode, [](CriuPeer& peer) { peer.SendBytes(std::string(10, '\1')); }),
              HasSubstr("in the middle"));
}

TEST_P(CriuSessionTest, KeepsNothingOfAClientThatHadNothing) {
  Served served(*store_, GetParam());
  EXPECT_EQ(served.peer().Close(), 0);
  EXPECT_TRUE(absl::IsUnavailable(served.Result().status()));
  Served asked(*store_, GetParam());
  EXPECT_EQ(asked.peer().AskParent(kTask), 0);
  EXPECT_EQ(asked.peer().Close(), 0);
  EXPECT_TRUE(absl::IsUnavailable(asked.Result().status()));
  EXPECT_EQ(DirectoriesInStore(), 0);
}

TEST_F(CriuSessionTest, EndsWithTheServerAndWithSilentClients) {
  {
    Served served(*store_, HeaderSize::kOld);
    EXPECT_EQ(served.peer().Open(kTask), 0);
    served.Stop();
    char byte;
    EXPECT_EQ(::recv(served.peer().fd(), &byte, 1, 0), 0);
    EXPECT_TRUE(absl::IsCancelled(served.Result().status()));
  }
  CriuClientOptions options;
  options.patience = absl::Milliseconds(50);
  Served served(*store_, HeaderSize::kOld, options);
  EXPECT_EQ(served.peer().Open(kTask), 0);
  EXPECT_TRUE(served.peer().Send(0x00040006, kTask, 0x10000, 4));
  char byte;
  EXPECT_EQ(::recv(served.peer().fd(), &byte, 1, 0), 0);
  EXPECT_TRUE(absl::IsDeadlineExceeded(served.Result().status()));
  EXPECT_EQ(DirectoriesInStore(), 0);
}

TEST_F(CriuSessionTest, WaitsForAnotherWriterALittle) {
  std::optional<images::PartialDirectory> other;
  other.emplace(*store_->Begin(false));
  CriuClientOptions options;
  options.store_patience = absl::Milliseconds(50);
  {
    Served served(*store_, HeaderSize::kOld, options);
    EXPECT_EQ(served.peer().Open(kTask), 0);
    EXPECT_TRUE(served.peer().SendPages(kTask, 0x10000, 4, 1));
    EXPECT_GT(served.peer().Close(), 0);
    EXPECT_THAT(served.Result().status().message(), HasSubstr("somebody else"));
  }
  options.store_patience = absl::Minutes(1);
  Served served(*store_, HeaderSize::kOld, options);
  EXPECT_TRUE(served.peer().Send(protocol::kOpen2, kTask));
  other.reset();
  EXPECT_EQ(served.peer().OpenAnswer(), 0);
  EXPECT_TRUE(served.peer().SendPages(kTask, 0x10000, 4, 1));
  EXPECT_EQ(served.peer().Close(), 0);
}

TEST_P(CriuSessionTest, AFullDiskIsToldAtTheEnd) {
  const std::string path = directory_.File("disk");
  ASSERT_EQ(::mkdir(path.c_str(), 0700), 0);
  if (::mount("predump-test", path.c_str(), "tmpfs", MS_NOSUID | MS_NODEV, "size=256k") != 0) {
    GTEST_SKIP() << "cannot mount a tmpfs: " << ::strerror(errno);
  }
  {
    const auto store = images::ImageStore::Open(path);
    ASSERT_TRUE(store.ok()) << store.status();
    Served served(*store, GetParam());
    EXPECT_EQ(served.peer().Open(kTask), 0);
    // All of it is taken: neither a signal nor an error meets the client while it sends.
    EXPECT_TRUE(served.peer().SendPages(kTask, 0x10000, 1000, 1));
    EXPECT_TRUE(served.peer().SendPages(kTask, kHigh, 1000, 1));
    EXPECT_EQ(served.peer().Open(protocol::TaskObject(8)), 0);
    EXPECT_TRUE(served.peer().SendPages(protocol::TaskObject(8), 0x10000, 10, 1));
    EXPECT_GT(served.peer().Close(), 0);
    const auto result = served.Result();
    EXPECT_TRUE(absl::IsResourceExhausted(result.status())) << result.status();
    EXPECT_THAT(result.status().message(), HasSubstr("No space left"));
    EXPECT_TRUE(absl::IsNotFound(store->OpenLatest().status()));
    EXPECT_FALSE(std::filesystem::exists(path + "/.1.partial"));
  }
  EXPECT_EQ(::umount2(path.c_str(), MNT_DETACH), 0);
}

}  // namespace
}  // namespace predump::pageserver
