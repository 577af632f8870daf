#include "src/transport/page_server_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <cstring>
#include <optional>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/transport/stream_pair.h"

namespace predump::transport {
namespace {

using page_server::HeaderSize;
using page_server::Message;
using ::testing::HasSubstr;

constexpr uint64_t kPage = 4096;
constexpr uint32_t kPid = 0x1234;

Deadline Soon() { return Deadline::After(absl::Seconds(10)); }
Deadline Now() { return Deadline::After(absl::Milliseconds(20)); }

base::AddressRange Pages(uint64_t first, uint64_t count) {
  return base::AddressRange::FromOrdered(first * kPage, (first + count) * kPage);
}

class PageServerClientTest : public ::testing::TestWithParam<HeaderSize> {
 protected:
  PageServerClientTest() {
    auto [ours, theirs] = MakeStreamPair();
    client_.emplace(std::move(ours), GetParam(), kPid);
    peer_ = std::move(theirs);
  }

  Message Next() {
    const std::string bytes = ReadRaw(peer_.get(), static_cast<size_t>(GetParam()));
    EXPECT_EQ(bytes.size(), static_cast<size_t>(GetParam()));
    return page_server::Decode(reinterpret_cast<const unsigned char*>(bytes.data()), GetParam());
  }
  void Answer(int32_t status) { WriteRaw(peer_.get(), BytesOf(status)); }
  void OpenWith(char answer) {
    WriteRaw(peer_.get(), std::string(1, answer));
    const absl::Status opened = client_->Open(Soon());
    ASSERT_TRUE(opened.ok()) << opened;
    const Message open = Next();
    EXPECT_EQ(open.command, page_server::kOpen2);
    EXPECT_EQ(open.object, uint64_t{kPid} << 8 | 1);
    EXPECT_EQ(open.pages, 0u);
    EXPECT_EQ(open.address, 0u);
  }

  std::optional<PageServerClient> client_;
  base::UniqueFd peer_;
};

TEST_P(PageServerClientTest, SpeaksAsCriusOwnClientDoes) {
  OpenWith(1);
  EXPECT_TRUE(client_->has_parent());
  ASSERT_TRUE(client_->Hole(Pages(16, 3)).ok());
  ASSERT_TRUE(client_->PagesHeader(Pages(20, 2)).ok());
  WriteRaw(client_->fd(), std::string(2 * kPage, 'p'));

  const Message hole = Next();
  EXPECT_EQ(hole.command, 0x00010006u);
  EXPECT_EQ(hole.address, 16 * kPage);
  EXPECT_EQ(hole.pages, 3u);
  EXPECT_EQ(hole.object, uint64_t{kPid} << 8 | 1);
  const Message pages = Next();
  EXPECT_EQ(pages.command, 0x00040006u);
  EXPECT_EQ(pages.address, 20 * kPage);
  EXPECT_EQ(pages.pages, 2u);
  EXPECT_EQ(ReadRaw(peer_.get(), 2 * kPage), std::string(2 * kPage, 'p'));
  EXPECT_EQ(client_->bytes_sent().value(), 3 * static_cast<size_t>(GetParam()) + 2 * kPage);

  // The server waits for our end before it ends itself.
  bool our_end_seen = false;
  std::thread server([&] {
    const Message close = Next();
    EXPECT_EQ(close.command, 0x1023u);
    EXPECT_EQ(close.object, 0u);
    Answer(0);
    our_end_seen = ReadRaw(peer_.get(), 1).empty();
    peer_ = base::UniqueFd();
  });
  const absl::Status closed = client_->Close(Soon());
  server.join();
  EXPECT_TRUE(closed.ok()) << closed;
  EXPECT_TRUE(our_end_seen);
}

TEST_P(PageServerClientTest, ZeroMeansNoParent) {
  OpenWith(0);
  EXPECT_FALSE(client_->has_parent());
}

TEST_P(PageServerClientTest, ALongHoleIsCutWhereTheOldHeaderCouldNotHoldIt) {
  OpenWith(1);
  const uint64_t many = uint64_t{5} << 32;  // pages
  const base::AddressRange range = base::AddressRange::FromOrdered(0, many / 4096 * kPage);
  ASSERT_TRUE(client_->Hole(range).ok());
  uint64_t next = 0;
  while (next < range.end().value()) {
    const Message hole = Next();
    ASSERT_EQ(hole.address, next);
    ASSERT_GT(hole.pages, 0u);
    next += hole.pages * kPage;
  }
  EXPECT_EQ(next, range.end().value());
  EXPECT_TRUE(absl::IsInvalidArgument(client_->PagesHeader(range)));
}

TEST_P(PageServerClientTest, AServerThatHangsUpAtTheFirstMessageIsUnavailable) {
  peer_ = base::UniqueFd();
  const absl::Status opened = client_->Open(Soon());
  EXPECT_TRUE(absl::IsUnavailable(opened)) << opened;
  EXPECT_THAT(opened.message(), HasSubstr("ended the connection"));
}

TEST_P(PageServerClientTest, AServerThatSaysNothingIsNotWaitedForForEver) {
  EXPECT_TRUE(absl::IsDeadlineExceeded(client_->Open(Now())));
}

TEST_P(PageServerClientTest, AServerThatHangsUpInTheMidstSaysSoAtTheNextWord) {
  OpenWith(0);
  peer_ = base::UniqueFd();
  const absl::Status sent = client_->PagesHeader(Pages(1, 1));
  EXPECT_TRUE(absl::IsUnavailable(sent)) << sent;
  EXPECT_THAT(sent.message(), HasSubstr("ended the connection"));
  EXPECT_TRUE(absl::IsUnavailable(client_->Close(Soon())));
  EXPECT_THAT(client_->Explain(absl::UnavailableError("splice: Broken pipe")).message(),
              HasSubstr("ended the connection"));
  EXPECT_THAT(client_->Explain(absl::InternalError("a fault of ours")).message(),
              HasSubstr("a fault of ours"));
}

TEST_P(PageServerClientTest, AStatusThatIsNotZeroIsNoSuccess) {
  OpenWith(0);
  Answer(-1);
  const absl::Status closed = client_->Close(Soon());
  EXPECT_TRUE(absl::IsFailedPrecondition(closed)) << closed;
  EXPECT_THAT(closed.message(), HasSubstr("status -1"));
}

TEST_P(PageServerClientTest, HalfAStatusIsNoSuccess) {
  OpenWith(0);
  WriteRaw(peer_.get(), std::string(2, '\0'));
  ::shutdown(peer_.get(), SHUT_WR);
  EXPECT_TRUE(absl::IsUnavailable(client_->Close(Soon())));
}

TEST_P(PageServerClientTest, WordsAfterTheLastAnswerAreNonsense) {
  OpenWith(0);
  Answer(0);
  WriteRaw(peer_.get(), "x");
  EXPECT_EQ(client_->Close(Soon()).code(), absl::StatusCode::kDataLoss);
}

TEST_P(PageServerClientTest, AServerThatNeverEndsTheConnectionHasNotStoredIt) {
  OpenWith(0);
  Answer(0);
  EXPECT_TRUE(absl::IsDeadlineExceeded(client_->Close(Now())));
}

INSTANTIATE_TEST_SUITE_P(Headers, PageServerClientTest,
                         ::testing::Values(HeaderSize::kOld, HeaderSize::kNew),
                         [](const auto& param) {
                           return absl::StrCat("bytes_", static_cast<size_t>(param.param));
                         });

}  // namespace
}  // namespace predump::transport
