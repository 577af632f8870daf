#include "src/transport/data_writer.h"

#include <errno.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <thread>
#include <vector>

#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/transport/data_check.h"
#include "src/transport/socket.h"
#include "tests/transport/stream_pair.h"

namespace predump::transport {
namespace {

using ::testing::HasSubstr;

constexpr char kToken[] = "0123456789abcdef";

Deadline Soon() { return Deadline::After(absl::Seconds(10)); }

template <typename T>
T ReadObject(int fd) {
  T value = {};
  const std::string bytes = ReadRaw(fd, sizeof value);
  EXPECT_EQ(bytes.size(), sizeof value);
  if (bytes.size() == sizeof value) std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

DataHeader Reply(DataKind kind, uint32_t count, uint64_t arg) {
  return {static_cast<uint32_t>(kind), count, arg, 0, 0};
}

class DataWriterTest : public ::testing::Test {
 protected:
  DataWriterTest() : DataWriterTest(MakeStreamPair()) {}
  void SetUp() override {
    EXPECT_EQ(ReadRaw(peer_.get(), 8), "PRDDAT01");
    EXPECT_EQ(ReadRaw(peer_.get(), 16), kToken);
  }

  DataWriter writer_;
  base::UniqueFd peer_;

 private:
  explicit DataWriterTest(std::pair<base::UniqueFd, base::UniqueFd> pair)
      : writer_(*DataWriter::Start(std::move(pair.first), kToken, absl::Milliseconds(200))),
        peer_(std::move(pair.second)) {}
};

TEST_F(DataWriterTest, WritesARoundAsTheFormatSays) {
  MapRecord map = {};
  map.start = 0x10000;
  map.bytes = 0x4000;
  map.prot = PROT_READ;
  map.flags = kMapFile;
  ASSERT_TRUE(writer_.Map(map, "/bin/true").ok());
  const std::vector<WireExtent> holes = {{0x1000, 0x1000}, {0x4000, 0x2000}};
  ASSERT_TRUE(writer_.Unmap(holes).ok());
  ASSERT_TRUE(writer_.Drop(holes).ok());
  const std::vector<WireExtent> pages = {{0x10000, 0x1000}, {0x13000, 0x1000}};
  ASSERT_TRUE(writer_.PagesHeader(pages).ok());
  WriteRaw(writer_.fd(), std::string(0x1000, 'a') + std::string(0x1000, 'b'));
  ASSERT_TRUE(writer_.EndRound(0).ok());
  ASSERT_TRUE(writer_.Final(1).ok());

  auto header = ReadObject<DataHeader>(peer_.get());
  EXPECT_EQ(header.kind, static_cast<uint32_t>(DataKind::kMap));
  const auto record = ReadObject<MapRecord>(peer_.get());
  EXPECT_EQ(record.path_bytes, 9u);
  EXPECT_EQ(record.start, 0x10000u);
  EXPECT_EQ(ReadRaw(peer_.get(), 9), "/bin/true");
  for (const DataKind kind : {DataKind::kUnmap, DataKind::kDrop}) {
    header = ReadObject<DataHeader>(peer_.get());
    EXPECT_EQ(header.kind, static_cast<uint32_t>(kind));
    EXPECT_EQ(header.count, 2u);
    EXPECT_EQ(ReadObject<WireExtent>(peer_.get()).start, 0x1000u);
    EXPECT_EQ(ReadObject<WireExtent>(peer_.get()).bytes, 0x2000u);
  }
  header = ReadObject<DataHeader>(peer_.get());
  EXPECT_EQ(header.kind, static_cast<uint32_t>(DataKind::kPages));
  EXPECT_EQ(header.count, 2u);
  EXPECT_EQ(header.arg, 0x2000u);
  EXPECT_EQ(header.round, 0u);
  EXPECT_EQ(ReadObject<WireExtent>(peer_.get()).start, 0x10000u);
  EXPECT_EQ(ReadObject<WireExtent>(peer_.get()).start, 0x13000u);
  EXPECT_EQ(ReadRaw(peer_.get(), 0x2000), std::string(0x1000, 'a') + std::string(0x1000, 'b'));
  header = ReadObject<DataHeader>(peer_.get());
  EXPECT_EQ(header.kind, static_cast<uint32_t>(DataKind::kRoundEnd));
  EXPECT_EQ(header.arg, 0u);
  header = ReadObject<DataHeader>(peer_.get());
  EXPECT_EQ(header.kind, static_cast<uint32_t>(DataKind::kFinal));
  EXPECT_EQ(header.arg, 1u);
  const uint64_t expected_bytes = 24 + (32 + 40 + 9) + 2 * (32 + 32) + (32 + 32 + 0x2000) + 2 * 32;
  EXPECT_EQ(writer_.bytes_sent().value(), expected_bytes);
}

TEST_F(DataWriterTest, SmallFramesWaitForTheEndOfTheRound) {
  ASSERT_TRUE(writer_.Drop(std::vector<WireExtent>{{0x1000, 0x1000}}).ok());
  char unused;
  EXPECT_EQ(::recv(peer_.get(), &unused, 1, MSG_DONTWAIT), -1);
  ASSERT_TRUE(writer_.EndRound(0).ok());
  EXPECT_EQ(ReadRaw(peer_.get(), 32 + 16 + 32).size(), 80u);
}

TEST_F(DataWriterTest, ManyRangesAreSplitOverFramesAReaderTakes) {
  std::vector<WireExtent> ranges;
  for (uint64_t i = 1; i <= 2500; ++i) ranges.push_back({i * 0x2000, 0x1000});
  std::thread sender([&] {
    EXPECT_TRUE(writer_.Unmap(ranges).ok());
    EXPECT_TRUE(writer_.EndRound(0).ok());
  });
  size_t seen = 0;
  for (const uint32_t count : {1024u, 1024u, 452u}) {
    const auto header = ReadObject<DataHeader>(peer_.get());
    EXPECT_EQ(CheckHeader(header), DataDefect::kNone);
    ASSERT_EQ(header.count, count);
    std::vector<WireExtent> got(count);
    const std::string bytes = ReadRaw(peer_.get(), count * sizeof(WireExtent));
    std::memcpy(got.data(), bytes.data(), bytes.size());
    EXPECT_EQ(CheckExtents(header, got.data()), DataDefect::kNone);
    for (const WireExtent& extent : got) EXPECT_EQ(extent.start, ranges[seen++].start);
  }
  EXPECT_EQ(seen, ranges.size());
  sender.join();
}

TEST_F(DataWriterTest, NeighbouringExtentsAreAnnouncedAsOne) {
  const std::vector<WireExtent> pages = {{0x1000, 0x1000}, {0x2000, 0x3000}, {0x9000, 0x1000}};
  ASSERT_TRUE(writer_.PagesHeader(pages).ok());
  const auto header = ReadObject<DataHeader>(peer_.get());
  EXPECT_EQ(header.count, 2u);
  EXPECT_EQ(header.arg, 0x5000u);
}

TEST_F(DataWriterTest, FramesNoLandingWouldTakeAreNotWritten) {
  const std::vector<std::vector<WireExtent>> wrong = {
      {},
      {{0x1001, 0x1000}},
      {{0x1000, 0}},
      {{0x3000, 0x1000}, {0x1000, 0x1000}},
      {{0x1000, 0x2000}, {0x2000, 0x1000}},
      {{kUserSpaceEnd, 0x1000}},
      {{0x1000, kMaxPayloadBytes + 0x1000}},
  };
  for (const auto& extents : wrong) {
    EXPECT_TRUE(absl::IsInvalidArgument(writer_.PagesHeader(extents)));
  }
  MapRecord map = {};
  map.start = 0x1000;
  map.bytes = 0x1000;
  EXPECT_TRUE(absl::IsInvalidArgument(writer_.Map(map, "/a/path/of/an/anonymous/mapping")));
  map.flags = kMapFile;
  EXPECT_TRUE(absl::IsInvalidArgument(writer_.Map(map, "")));
  EXPECT_TRUE(absl::IsInvalidArgument(writer_.Map(map, "relative")));
  EXPECT_TRUE(absl::IsInvalidArgument(writer_.Map(map, std::string("/a\0b", 4))));
  EXPECT_TRUE(absl::IsInvalidArgument(writer_.Map(map, "/" + std::string(kMaxPathBytes, 'x'))));
  ASSERT_TRUE(writer_.EndRound(0).ok());
  EXPECT_EQ(ReadObject<DataHeader>(peer_.get()).kind, static_cast<uint32_t>(DataKind::kRoundEnd));
}

TEST_F(DataWriterTest, AcknowledgementsMayComeWhileTheNextRoundIsWritten) {
  ASSERT_TRUE(writer_.EndRound(0).ok());
  WriteRaw(peer_.get(), BytesOf(Reply(DataKind::kAcknowledge, 0, 0)));
  ASSERT_TRUE(writer_.PagesHeader(std::vector<WireExtent>{{0x1000, 0x1000}}).ok());
  EXPECT_TRUE(writer_.ReadAcknowledge(0, Soon()).ok());
}

TEST_F(DataWriterTest, AcknowledgementOfAnotherRoundIsNonsense) {
  WriteRaw(peer_.get(), BytesOf(Reply(DataKind::kAcknowledge, 0, 7)));
  EXPECT_TRUE(absl::IsDataLoss(writer_.ReadAcknowledge(0, Soon())));
}

TEST_F(DataWriterTest, UnknownReplyAndRepliesWithoutEndAreNonsense) {
  WriteRaw(peer_.get(), std::string(32, 'x'));
  EXPECT_TRUE(absl::IsDataLoss(writer_.CheckPeer()));
  for (int i = 0; i < 65; ++i) {
    WriteRaw(peer_.get(), BytesOf(Reply(DataKind::kAcknowledge, 0, 0)));
  }
  EXPECT_TRUE(absl::IsDataLoss(writer_.CheckPeer()));
}

TEST_F(DataWriterTest, MissingAcknowledgementCostsTheDeadlineOnly) {
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      writer_.ReadAcknowledge(0, Deadline::After(absl::Milliseconds(20)))));
  const std::string reply = BytesOf(Reply(DataKind::kAcknowledge, 0, 0));
  WriteRaw(peer_.get(), reply.substr(0, 9));
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      writer_.ReadAcknowledge(0, Deadline::After(absl::Milliseconds(20)))));
  WriteRaw(peer_.get(), reply.substr(9));
  EXPECT_TRUE(writer_.ReadAcknowledge(0, Soon()).ok());
}

TEST_F(DataWriterTest, LandingErrorCarriesErrnoAndAddress) {
  WriteRaw(peer_.get(), BytesOf(Reply(DataKind::kLandingError, ENOMEM, 0x7f0000001000)));
  const absl::Status status = writer_.ReadAcknowledge(0, Soon());
  EXPECT_EQ(base::ErrnoOf(status), ENOMEM);
  EXPECT_THAT(status.message(), HasSubstr("7f0000001000"));
}

TEST_F(DataWriterTest, LandingErrorIsNoticedBeforeTheNextPayload) {
  WriteRaw(peer_.get(), BytesOf(Reply(DataKind::kLandingError, EFAULT, 0x1000)));
  EXPECT_EQ(base::ErrnoOf(writer_.PagesHeader(std::vector<WireExtent>{{0x1000, 0x1000}})), EFAULT);
}

TEST_F(DataWriterTest, VanishedLandingIsUnavailable) {
  peer_ = base::UniqueFd();
  EXPECT_TRUE(absl::IsUnavailable(writer_.ReadAcknowledge(0, Soon())));
}

TEST_F(DataWriterTest, AcknowledgementJustBeforeTheEndStillCounts) {
  WriteRaw(peer_.get(), BytesOf(Reply(DataKind::kAcknowledge, 0, 0)));
  peer_ = base::UniqueFd();
  EXPECT_TRUE(writer_.ReadAcknowledge(0, Soon()).ok());
  EXPECT_TRUE(absl::IsUnavailable(writer_.ReadAcknowledge(1, Soon())));
}

TEST_F(DataWriterTest, LandingThatStopsReadingIsFoundByTheStallTimeout) {
  std::vector<WireExtent> ranges;
  for (uint64_t i = 1; i <= 100000; ++i) ranges.push_back({i * 0x2000, 0x1000});
  const base::Stopwatch watch;
  EXPECT_TRUE(absl::IsDeadlineExceeded(writer_.Unmap(ranges)));
  EXPECT_LT(watch.Elapsed(), absl::Seconds(5));
}

// Over real TCP: a landing that is killed with unread data resets the connection.
TEST(DataWriterTcpTest, BlockedPushIsWokenByADyingLandingAndExplainedByItsLastWords) {
  auto listener = Listen(*Address::Parse("127.0.0.1:0"));
  ASSERT_TRUE(listener.ok());
  auto client = Connect(*Address::Parse(listener->address.ToString()), SocketOptions(), Soon());
  ASSERT_TRUE(client.ok());
  auto accepted = Accept(listener->fd.get());
  ASSERT_TRUE(accepted.ok());
  auto writer = DataWriter::Start(*std::move(client), kToken);
  ASSERT_TRUE(writer.ok());
  std::thread landing([fd = std::move(accepted->fd)]() mutable {
    ASSERT_TRUE(SetBlocking(fd.get(), true).ok());
    ReadRaw(fd.get(), 1u << 20);
    WriteRaw(fd.get(), BytesOf(Reply(DataKind::kLandingError, ENOMEM, 0x5000)));
  });
  ASSERT_TRUE(writer->PagesHeader(std::vector<WireExtent>{{0x1000, kMaxPayloadBytes}}).ok());
  absl::Status push;
  const std::string block(1u << 20, 'x');
  while (push.ok()) {
    if (::send(writer->fd(), block.data(), block.size(), MSG_NOSIGNAL) < 0) {
      push = base::ErrnoError(errno, "push");
    }
  }
  landing.join();
  EXPECT_EQ(base::ErrnoOf(writer->Explain(push)), ENOMEM) << push;
}

TEST(DataWriterStartTest, TokenOfAnotherLengthIsRefused) {
  auto [a, b] = MakeStreamPair();
  EXPECT_TRUE(absl::IsInvalidArgument(DataWriter::Start(std::move(a), "short").status()));
}

}  // namespace
}  // namespace predump::transport
