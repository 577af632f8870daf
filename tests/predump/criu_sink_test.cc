#include "src/predump/criu_sink.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/predump/page_sender.h"

namespace predump {
namespace {

using pagemap::Extent;
using pagemap::ExtentSet;
using pagemap::Vma;
using pagemap::VmaList;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using transport::page_server::HeaderSize;
using transport::page_server::Message;

constexpr uint64_t kPage = 4096;
constexpr size_t kHeader = 24;

Extent Pages(uint64_t first, uint64_t count) {
  return Extent::FromOrdered(first * kPage, (first + count) * kPage);
}

ExtentSet Set(const std::vector<Extent>& extents) { return ExtentSet::FromUnsorted(extents); }

Vma Anonymous(Extent range) {
  Vma vma;
  vma.range = range;
  vma.kind = pagemap::VmaKind::kAnonymousPrivate;
  return vma;
}

// Each page holds its number; those in `gone` have vanished.
class NumberedPages final : public pagemap::PageSource {
 public:
  absl::string_view name() const override { return "numbered"; }
  base::PageCount max_pages() const override { return base::PageCount(5); }
  absl::StatusOr<pagemap::FetchResult> Fetch(std::span<const Extent> wanted) override {
    pagemap::FetchResult result;
    ExtentSet fetched;
    for (const Extent& extent : wanted) {
      for (uint64_t at = extent.start().value(); at < extent.end().value(); at += kPage) {
        result.consumed += base::PageCount(1);
        if (gone.Contains(base::RemoteAddress(at))) continue;
        fetched.Add(Extent::FromOrdered(at, at + kPage));
        held_.append(kPage, static_cast<char>(at / kPage + static_cast<uint64_t>(generation)));
      }
    }
    result.fetched = fetched.extents();
    return result;
  }
  base::ByteCount held() const override { return base::ByteCount(held_.size()); }
  absl::Status Push(int out_fd, base::ByteCount bytes) override {
    const ssize_t n = ::send(out_fd, held_.data(), bytes.value(), MSG_NOSIGNAL);
    held_.erase(0, bytes.value());
    return n == static_cast<ssize_t>(bytes.value()) ? absl::OkStatus()
                                                    : absl::UnavailableError("send");
  }
  absl::Status Finish() override { return absl::OkStatus(); }

  ExtentSet gone;
  int generation = 0;

 private:
  std::string held_;
};

struct Behaviour {
  enum class Connect { kServed, kRefused };
  Connect connect = Connect::kServed;
  bool has_parent = false;
  bool hangs_up_at_once = false;
  bool hangs_up_at_first_entry = false;
  int32_t status = 0;
};

// What one connection brought.
struct Stored {
  Message open;
  std::vector<Message> entries;
  std::map<uint64_t, char> present;  // page -> its byte
  ExtentSet holes;
  bool in_order = true;
  bool closed = false;
};

// A page server, one connection after the other, each as told beforehand.
class Server {
 public:
  ~Server() { Join(); }

  void Expect(Behaviour behaviour) { script_.push_back(behaviour); }

  absl::StatusOr<base::UniqueFd> Connect() {
    Join();
    ++attempts_;
    const Behaviour behaviour =
        script_.empty() ? Behaviour{.connect = Behaviour::Connect::kRefused} : script_.front();
    if (!script_.empty()) script_.pop_front();
    if (behaviour.connect == Behaviour::Connect::kRefused) {
      return absl::UnavailableError("connect: Connection refused");
    }
    int ends[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    stored_.emplace_back();
    thread_ = std::thread([this, behaviour, fd = ends[1]] {
      Serve(behaviour, stored_.back(), fd);
      ::close(fd);
    });
    return base::UniqueFd(ends[0]);
  }

  // Of all connections; the last one has ended.
  const std::vector<Stored>& stored() {
    Join();
    return stored_;
  }
  int attempts() const { return attempts_; }

 private:
  static bool Read(int fd, void* out, size_t size) {
    return ::recv(fd, out, size, MSG_WAITALL) == static_cast<ssize_t>(size);
  }
  static bool Next(int fd, Message& message) {
    unsigned char bytes[kHeader];
    if (!Read(fd, bytes, sizeof bytes)) return false;
    message = transport::page_server::Decode(bytes, HeaderSize::kOld);
    return true;
  }

  static void Serve(const Behaviour& behaviour, Stored& stored, int fd) {
    if (!Next(fd, stored.open) || behaviour.hangs_up_at_once) return;
    const char answer = behaviour.has_parent ? 1 : 0;
    if (::send(fd, &answer, 1, MSG_NOSIGNAL) != 1) return;
    uint64_t end = 0;
    Message message;
    while (Next(fd, message)) {
      if (behaviour.hangs_up_at_first_entry) return;
      if (message.command == transport::page_server::kClose) {
        stored.closed = ::send(fd, &behaviour.status, 4, MSG_NOSIGNAL) == 4;
        char more = 0;
        stored.closed &= ::recv(fd, &more, 1, 0) == 0;
        return;
      }
      stored.entries.push_back(message);
      stored.in_order &= message.address >= end;
      end = message.address + message.pages * kPage;
      const Extent range = Extent::FromOrdered(message.address, end);
      if (message.flags() == 1) {
        stored.holes.Add(range);
        continue;
      }
      for (uint64_t at = message.address; at < end; at += kPage) {
        char page[kPage];
        if (!Read(fd, page, kPage)) return;
        stored.present[at / kPage] = page[kPage - 1];
      }
    }
  }

  void Join() {
    if (thread_.joinable()) thread_.join();
  }

  std::deque<Behaviour> script_;
  std::vector<Stored> stored_;
  std::thread thread_;
  int attempts_ = 0;
};

class CriuSinkTest : public ::testing::Test {
 protected:
  CriuSinkTest() {
    CriuSinkOptions options;
    options.name = "criu://server:1";
    options.connect = [this](transport::Deadline) { return server_.Connect(); };
    options.pid = 77;
    options.patience = absl::Milliseconds(200);
    options.note = [this](const std::string& note) { notes_.push_back(note); };
    sink_ = std::make_unique<CriuSink>(std::move(options), cancellation_);
  }

  absl::Status Round(const std::vector<Extent>& pages, const std::vector<Extent>& drop = {}) {
    if (const absl::Status ready = sink_->AwaitReady(); !ready.ok()) return ready;
    transport::BandwidthLimiter limiter{base::ByteCount(0)};
    PageSender sender(*sink_, source_, limiter);
    pagemap::DirtySet dirty;
    dirty.pages = Set(pages);
    dirty.drop = Set(drop);
    const auto sent = sender.Send(vmas_, dirty, nullptr);
    if (!sent.ok()) return sent.status();
    return sink_->EndRound(round_++, transport::Deadline::After(absl::Seconds(10)));
  }

  // Every page the images hold, by following parents from the last directory.
  std::map<uint64_t, char> Restored() {
    std::map<uint64_t, char> memory;
    const std::vector<Stored>& all = server_.stored();
    for (const Stored& stored : all) {
      std::map<uint64_t, char> next = stored.present;
      for (const Extent& hole : stored.holes.extents()) {
        for (uint64_t at = hole.start().value(); at < hole.end().value(); at += kPage) {
          EXPECT_TRUE(memory.contains(at / kPage)) << "a hole the parent knows nothing of";
          next[at / kPage] = memory[at / kPage];
        }
      }
      memory = std::move(next);
    }
    return memory;
  }

  Cancellation cancellation_;
  Server server_;
  NumberedPages source_;
  VmaList vmas_{{Anonymous(Pages(16, 32))}};
  std::unique_ptr<CriuSink> sink_;
  std::vector<std::string> notes_;
  uint64_t round_ = 0;
};

TEST_F(CriuSinkTest, EachRoundIsADirectoryThatSaysWhereEveryLivingPageIs) {
  server_.Expect({});
  server_.Expect({.has_parent = true});
  server_.Expect({.has_parent = true});
  ASSERT_TRUE(Round({Pages(16, 8), Pages(30, 2)}).ok());
  source_.generation = 100;
  ASSERT_TRUE(Round({Pages(18, 2), Pages(40, 1)}, {Pages(22, 1)}).ok());
  // The end of the mapping is gone, something else is mapped there.
  vmas_ = VmaList({Anonymous(Pages(16, 14))});
  source_.generation = 50;
  ASSERT_TRUE(Round({Pages(16, 1)}).ok());

  const auto& all = server_.stored();
  ASSERT_EQ(all.size(), 3u);
  for (const Stored& stored : all) {
    EXPECT_TRUE(stored.closed);
    EXPECT_TRUE(stored.in_order);
    EXPECT_EQ(stored.open.command, transport::page_server::kOpen2);
    EXPECT_EQ(stored.open.object, transport::page_server::TaskObject(77));
  }
  EXPECT_TRUE(all[0].holes.empty());
  EXPECT_EQ(all[1].holes, Set({Pages(16, 2), Pages(20, 2), Pages(23, 1), Pages(30, 2)}));
  EXPECT_EQ(all[2].holes, Set({Pages(17, 5), Pages(23, 1)}));
  const std::map<uint64_t, char> memory = Restored();
  const std::map<uint64_t, char> expected = {{16, 66}, {17, 17}, {18, 118}, {19, 119},
                                             {20, 20}, {21, 21}, {23, 23}};
  EXPECT_EQ(memory, expected);
  EXPECT_THAT(notes_, IsEmpty());
  EXPECT_GT(sink_->bytes_sent().value(), 14 * kPage);
}

TEST_F(CriuSinkTest, WithoutAParentAllPagesAreSentAgainAndThatIsSaidOnce) {
  for (int i = 0; i < 3; ++i) server_.Expect({});
  ASSERT_TRUE(Round({Pages(16, 4)}).ok());
  ASSERT_TRUE(Round({Pages(20, 1)}).ok());
  ASSERT_TRUE(Round({}).ok());
  for (const Stored& stored : server_.stored()) EXPECT_TRUE(stored.holes.empty());
  EXPECT_EQ(server_.stored()[1].present.size(), 5u);
  EXPECT_EQ(server_.stored()[2].present.size(), 5u);
  ASSERT_EQ(notes_.size(), 1u);
  EXPECT_THAT(notes_[0], HasSubstr("--prev-images-dir"));
}

TEST_F(CriuSinkTest, WhatVanishedOnTheWayIsNotAHoleLater) {
  server_.Expect({});
  server_.Expect({.has_parent = true});
  source_.gone = Set({Pages(17, 2)});
  ASSERT_TRUE(Round({Pages(16, 4)}).ok());
  ASSERT_TRUE(Round({}).ok());
  EXPECT_EQ(server_.stored()[1].holes, Set({Pages(16, 1), Pages(19, 1)}));
}

TEST_F(CriuSinkTest, TheNextServerIsWaitedFor) {
  server_.Expect({});
  for (int i = 0; i < 3; ++i) server_.Expect({.connect = Behaviour::Connect::kRefused});
  server_.Expect({.has_parent = true});
  ASSERT_TRUE(Round({Pages(16, 1)}).ok());
  ASSERT_TRUE(Round({}).ok());
  EXPECT_EQ(server_.attempts(), 5);
}

TEST_F(CriuSinkTest, ButNotForEver) {
  server_.Expect({});
  ASSERT_TRUE(Round({Pages(16, 1)}).ok());
  const absl::Status status = Round({});
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_THAT(status.message(), HasSubstr("no server listened again"));
  EXPECT_THAT(status.message(), HasSubstr("criu://server:1"));
}

TEST_F(CriuSinkTest, TheFirstServerMustBeThere) {
  EXPECT_THAT(Round({Pages(16, 1)}).message(), HasSubstr("refused"));
  EXPECT_EQ(server_.attempts(), 1);
}

TEST_F(CriuSinkTest, WaitingForAServerCanBeCancelled) {
  server_.Expect({});
  ASSERT_TRUE(Round({Pages(16, 1)}).ok());
  cancellation_.Request("told so");
  const absl::Status status = Round({});
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
  EXPECT_EQ(server_.attempts(), 2);
}

TEST_F(CriuSinkTest, AServerThatHangsUpAtOnceMayBeOfAnotherVersion) {
  server_.Expect({.hangs_up_at_once = true});
  const absl::Status status = Round({Pages(16, 1)});
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("--criu-header 32"));
}

TEST_F(CriuSinkTest, AServerThatHangsUpInTheMidstFailsTheRound) {
  server_.Expect({.hangs_up_at_first_entry = true});
  const absl::Status status = Round({Pages(16, 8)});
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("criu://server:1: "));
  EXPECT_THAT(status.message(), HasSubstr("ended the connection"));
}

TEST_F(CriuSinkTest, AServerThatCouldNotStoreFailsTheRound) {
  server_.Expect({.status = -5});
  const absl::Status status = Round({Pages(16, 1)});
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("end of round 0"));
  EXPECT_THAT(status.message(), HasSubstr("status -5"));
}

}  // namespace
}  // namespace predump
