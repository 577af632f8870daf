#include "src/transport/relay.h"

#include <errno.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "src/transport/descriptor_passing.h"
#include "src/transport/relay_frame.h"
#include "src/transport/socket.h"
#include "tests/transport/relay_bytes.h"
#include "tests/transport/stream_pair.h"

namespace predump::transport {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

const absl::Duration kPatience = absl::Seconds(20);

Deadline Soon() { return Deadline::After(kPatience); }

// A relay in a thread, and the other end of its channel.
class RunningRelay {
 public:
  RunningRelay(RelaySide side, base::UniqueFd in, base::UniqueFd out,
               const RelayOptions& options = {}) {
    auto channel = MakeDescriptorChannel();
    EXPECT_TRUE(channel.ok());
    channel_ = std::move(channel->first);
    thread_ = std::thread(
        [this, side, options,
         ends = RelayEnds{std::move(in), std::move(out), std::move(channel->second)}]() mutable {
          status_ = RunRelay(side, std::move(ends), options);
        });
  }
  ~RunningRelay() {
    channel_ = base::UniqueFd();
    if (thread_.joinable()) thread_.join();
  }

  int channel() const { return channel_.get(); }
  void CloseChannel() { channel_ = base::UniqueFd(); }
  // How it ended, which it must do by itself.
  absl::Status Join() {
    thread_.join();
    return status_;
  }

 private:
  base::UniqueFd channel_;
  absl::Status status_;
  std::thread thread_;
};

base::UniqueFd Duplicate(const base::UniqueFd& fd) {
  return base::UniqueFd(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
}

std::pair<base::UniqueFd, base::UniqueFd> MakePipePair() {
  int fds[2] = {-1, -1};
  EXPECT_EQ(::pipe2(fds, O_CLOEXEC), 0);
  return {base::UniqueFd(fds[0]), base::UniqueFd(fds[1])};
}

// Two relays, one at each end of a pair of pipes, or of one socket, as ssh and sshd use.
class RelayPair {
 public:
  explicit RelayPair(bool pipes, const RelayOptions& options = {}) {
    if (pipes) {
      auto [there_out, there_in] = MakePipePair();
      auto [back_out, back_in] = MakePipePair();
      opening_.emplace(RelaySide::kOpening, std::move(back_out), std::move(there_in), options);
      accepting_.emplace(RelaySide::kAccepting, std::move(there_out), std::move(back_in), options);
    } else {
      auto [here, there] = MakeStreamPair();
      cut_ = Duplicate(here);
      auto here_out = Duplicate(here);
      auto there_out = Duplicate(there);
      opening_.emplace(RelaySide::kOpening, std::move(here), std::move(here_out), options);
      accepting_.emplace(RelaySide::kAccepting, std::move(there), std::move(there_out), options);
    }
    EXPECT_TRUE(SendReady(accepting_->channel()).ok());
    EXPECT_TRUE(AwaitReady(opening_->channel(), Soon()).ok());
  }

  struct Stream {
    base::UniqueFd near;
    base::UniqueFd far;
  };

  Stream Open() {
    auto [near, handed] = MakeStreamPair();
    EXPECT_TRUE(SendDescriptor(opening_->channel(), handed.get()).ok());
    handed = base::UniqueFd();
    const auto waited = WaitFor(accepting_->channel(), POLLIN, Soon());
    EXPECT_TRUE(waited.ok() && *waited == WaitResult::kReady);
    auto far = ReceiveDescriptor(accepting_->channel());
    EXPECT_TRUE(far.ok() && far->has_value()) << far.status();
    return {std::move(near), *std::move(*far)};
  }

  RunningRelay& opening() { return *opening_; }
  RunningRelay& accepting() { return *accepting_; }
  // As a connection that breaks.
  void Cut() { ::shutdown(cut_.get(), SHUT_RDWR); }

 private:
  base::UniqueFd cut_;
  std::optional<RunningRelay> opening_;
  std::optional<RunningRelay> accepting_;
};

class RelayOverTest : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Pipes, RelayOverTest, ::testing::Bool(), [](const auto& what) {
  return std::string(what.param ? "Pipes" : "Socket");
});

TEST_P(RelayOverTest, PassesBothWaysAndKeepsHalfOfAClosedStreamOpen) {
  RelayPair relays(GetParam());
  RelayPair::Stream stream = relays.Open();
  WriteRaw(stream.near.get(), "question");
  EXPECT_EQ(ReadRaw(stream.far.get(), 8), "question");
  ::shutdown(stream.near.get(), SHUT_WR);
  EXPECT_EQ(ReadRaw(stream.far.get(), 1), "") << "the end has to be seen";
  WriteRaw(stream.far.get(), "answer");
  stream.far = base::UniqueFd();
  EXPECT_EQ(ReadRaw(stream.near.get(), 7), "answer");
}

TEST_P(RelayOverTest, DeliversWhatIsUnderWayWhenTheOpeningSideIsDone) {
  RelayPair relays(GetParam());
  RelayPair::Stream stream = relays.Open();
  const std::string last(100'000, 'd');
  WriteRaw(stream.near.get(), last);
  stream.near = base::UniqueFd();
  relays.opening().CloseChannel();
  EXPECT_EQ(ReadRaw(stream.far.get(), last.size() + 1), last);
  EXPECT_TRUE(relays.opening().Join().ok());
  ASSERT_TRUE(WaitFor(relays.accepting().channel(), POLLIN, Soon()).ok());
  EXPECT_TRUE(absl::IsUnavailable(ReceiveDescriptor(relays.accepting().channel()).status()))
      << "its channel has to end";
  EXPECT_TRUE(relays.accepting().Join().ok());
}

TEST_P(RelayOverTest, ServerThatEndsEndsTheStreams) {
  RelayPair relays(GetParam());
  RelayPair::Stream stream = relays.Open();
  WriteRaw(stream.far.get(), "last words");
  stream.far = base::UniqueFd();
  relays.accepting().CloseChannel();
  EXPECT_EQ(ReadRaw(stream.near.get(), 11), "last words");
  EXPECT_TRUE(absl::IsUnavailable(relays.opening().Join()));
}

// Sends `total` bytes that depend on `seed`, in pieces of any size; another thread reads and
// compares.
void SendSeeded(int fd, unsigned seed, size_t total) {
  std::mt19937 random(seed);
  std::string piece;
  while (total > 0) {
    piece.resize(std::min<size_t>(total, 1 + random() % 200'000));
    for (char& c : piece) c = static_cast<char>(random());
    size_t sent = 0;
    while (sent < piece.size()) {
      const ssize_t n = ::send(fd, piece.data() + sent, piece.size() - sent, MSG_NOSIGNAL);
      ASSERT_GT(n, 0);
      sent += static_cast<size_t>(n);
    }
    total -= piece.size();
  }
  ::shutdown(fd, SHUT_WR);
}

void ReceiveSeeded(int fd, unsigned seed, size_t total) {
  std::mt19937 random(seed);
  std::string piece;
  size_t left = total;
  while (left > 0) {
    piece.resize(std::min<size_t>(left, 1 + random() % 200'000));
    for (char& c : piece) c = static_cast<char>(random());
    ASSERT_EQ(ReadRaw(fd, piece.size()), piece) << left << " bytes before the end";
    left -= piece.size();
  }
  EXPECT_EQ(ReadRaw(fd, 1), "");
}

TEST_P(RelayOverTest, ManyStreamsAtOnceLoseAndMixNothing) {
  RelayOptions options;
  options.window_bytes = kMinRelayWindow;  // so that credit runs out all the time
  RelayPair relays(GetParam(), options);
  constexpr unsigned kStreams = 6;
  constexpr size_t kBytes = 3'000'000;
  std::vector<RelayPair::Stream> streams;
  for (unsigned i = 0; i < kStreams; ++i) streams.push_back(relays.Open());
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < kStreams; ++i) {
    const int near = streams[i].near.get();
    const int far = streams[i].far.get();
    threads.emplace_back([=] { SendSeeded(near, i, kBytes + i); });
    threads.emplace_back([=] { ReceiveSeeded(far, i, kBytes + i); });
    threads.emplace_back([=] { SendSeeded(far, 100 + i, kBytes / (i + 1)); });
    threads.emplace_back([=] { ReceiveSeeded(near, 100 + i, kBytes / (i + 1)); });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_P(RelayOverTest, StreamsComeAndGoWithoutEnd) {
  RelayPair relays(GetParam());
  for (int i = 0; i < 100; ++i) {
    RelayPair::Stream stream = relays.Open();
    WriteRaw(stream.near.get(), "x");
    EXPECT_EQ(ReadRaw(stream.far.get(), 1), "x");
  }
}

// Writes until nothing more is taken for a while, or far too much was; returns how much went.
size_t FillUp(int fd) {
  constexpr size_t kFarTooMuch = 32u << 20;
  const std::string piece(64 << 10, 's');
  size_t sent = 0;
  for (;;) {
    if (sent > kFarTooMuch) return sent;
    const ssize_t n = ::send(fd, piece.data(), piece.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0) {
      sent += static_cast<size_t>(n);
      continue;
    }
    const auto waited = WaitFor(fd, POLLOUT, Deadline::After(absl::Milliseconds(500)));
    EXPECT_TRUE(waited.ok());
    if (*waited == WaitResult::kDeadline) return sent;
  }
}

TEST_P(RelayOverTest, StalledReaderHoldsUpNobodyElseAndALimitedAmount) {
  RelayOptions options;
  options.window_bytes = 1u << 20;
  RelayPair relays(GetParam(), options);
  RelayPair::Stream stalled = relays.Open();
  const size_t sent = FillUp(stalled.near.get());
  // The window, and the buffers of the two sockets.
  EXPECT_LT(sent, options.window_bytes + (2u << 20));
  RelayPair::Stream other = relays.Open();
  std::thread sender([&] { SendSeeded(other.near.get(), 7, 5'000'000); });
  ReceiveSeeded(other.far.get(), 7, 5'000'000);
  sender.join();
  EXPECT_EQ(ReadRaw(stalled.far.get(), sent), std::string(sent, 's'));
}

TEST_P(RelayOverTest, WriterThatIsBlockedIsWokenWhenTheReaderGoes) {
  RelayPair relays(GetParam());
  RelayPair::Stream stream = relays.Open();
  FillUp(stream.near.get());
  int error = 0;
  std::thread writer([&] {
    while (::send(stream.near.get(), "more", 4, MSG_NOSIGNAL) > 0) {
    }
    error = errno;
  });
  WriteRaw(stream.far.get(), "I failed");
  stream.far = base::UniqueFd();
  writer.join();
  EXPECT_THAT(error, AnyOf(EPIPE, ECONNRESET));
  EXPECT_EQ(ReadRaw(stream.near.get(), 8), "I failed") << "what it said comes all the same";
}

TEST(RelayTest, CutConnectionEndsEveryStreamAtBothEnds) {
  RelayPair relays(/*pipes=*/false);
  RelayPair::Stream stream = relays.Open();
  RelayPair::Stream full = relays.Open();
  FillUp(full.near.get());
  relays.Cut();
  EXPECT_EQ(ReadRaw(stream.near.get(), 1), "");
  EXPECT_EQ(ReadRaw(stream.far.get(), 1), "");
  EXPECT_LT(::send(full.near.get(), "x", 1, MSG_NOSIGNAL), 0);
  EXPECT_TRUE(absl::IsUnavailable(relays.opening().Join()));
  full.far = base::UniqueFd();  // who does not read is not waited for without end
  relays.accepting().Join().IgnoreError();
}

TEST(RelayTest, IdleRelaysKeepEachOtherAlive) {
  RelayOptions options;
  options.heartbeat = absl::Milliseconds(50);
  options.silence_limit = absl::Seconds(1);
  RelayPair relays(/*pipes=*/false, options);
  RelayPair::Stream stream = relays.Open();
  // Nothing happens for twice as long as silence is borne.
  const auto waited = WaitFor(stream.near.get(), POLLIN, Deadline::After(absl::Seconds(2)));
  ASSERT_TRUE(waited.ok());
  EXPECT_EQ(*waited, WaitResult::kDeadline) << "the stream ended";
  WriteRaw(stream.near.get(), "still there");
  EXPECT_EQ(ReadRaw(stream.far.get(), 11), "still there");
}

// One relay, and a peer of it that says what the test likes.
class OneRelay {
 public:
  explicit OneRelay(RelaySide side, const RelayOptions& options = {}) {
    auto [here, there] = MakeStreamPair();
    peer_ = std::move(there);
    auto out = Duplicate(here);
    relay_.emplace(side, std::move(here), std::move(out), options);
    if (side == RelaySide::kAccepting) {
      EXPECT_TRUE(SendReady(relay_->channel()).ok());
    }
    EXPECT_EQ(ReadRaw(peer_.get(), kRelayHelloBytes).size(), kRelayHelloBytes);
  }
  void Say(const std::string& bytes) { WriteRaw(peer_.get(), bytes); }
  int peer() const { return peer_.get(); }
  RunningRelay& relay() { return *relay_; }
  absl::Status Join() { return relay_->Join(); }

 private:
  base::UniqueFd peer_;
  std::optional<RunningRelay> relay_;
};

TEST(RelayTest, SilentRelayCountsAsGone) {
  RelayOptions options;
  options.heartbeat = absl::Milliseconds(20);
  options.silence_limit = absl::Milliseconds(300);
  OneRelay one(RelaySide::kOpening, options);
  one.Say(Hello());
  const absl::Status status = one.Join();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("nothing was heard"));
}

TEST(RelayTest, AnswerOfSomethingElseIsQuoted) {
  OneRelay one(RelaySide::kOpening);
  one.Say("Welcome to host7!\n");
  const absl::Status status = one.Join();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("\"Welcome"));
}

TEST(RelayTest, OpeningOneWaitsForTheAnswerAsLongAsItTakes) {
  RelayOptions options;
  options.silence_limit = absl::Milliseconds(50);
  OneRelay one(RelaySide::kOpening, options);
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      AwaitReady(one.relay().channel(), Deadline::After(absl::Milliseconds(200)))));
  one.relay().CloseChannel();  // nobody waits any more
  EXPECT_EQ(ReadRaw(one.peer(), 1), "");
}

TEST(RelayTest, AnotherVersionIsNamed) {
  OneRelay one(RelaySide::kOpening);
  std::string hello = Hello();
  hello[8] = 9;
  one.Say(hello);
  const absl::Status status = one.Join();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("version 9"));
}

TEST(RelayTest, WhatNoRelaySendsEndsIt) {
  const std::string open = Frame(1, RelayKind::kOpen, 0);
  std::string many;
  for (uint32_t i = 1; i <= 17; ++i) many += Frame(i, RelayKind::kOpen, 0);
  const std::pair<const char*, std::string> cases[] = {
      {"an unknown kind", Frame(1, static_cast<RelayKind>(7), 0)},
      {"no kind", Frame(0, static_cast<RelayKind>(0), 0)},
      {"data of no length", open + Frame(1, RelayKind::kData, 0)},
      {"too long data", open + Frame(1, RelayKind::kData, kMaxRelayDataBytes + 1)},
      {"an end with a length", open + Frame(1, RelayKind::kEnd, 1)},
      {"a sign of life with a stream", Frame(1, RelayKind::kAlive, 0)},
      {"stream 0", Frame(0, RelayKind::kOpen, 0)},
      {"a stream twice", open + open},
      {"a stream never opened", Frame(1, RelayKind::kEnd, 0)},
      {"too many streams", many},
      {"more credit than was used", open + Frame(1, RelayKind::kCredit, 1)},
      {"data after the end",
       open + Frame(1, RelayKind::kEnd, 0) + Frame(1, RelayKind::kData, 1, "x")},
      {"a window of nothing", ""},
  };
  for (const auto& [what, bytes] : cases) {
    SCOPED_TRACE(what);
    OneRelay one(RelaySide::kAccepting);
    one.Say(bytes.empty() ? Hello(0) : Hello() + bytes);
    EXPECT_TRUE(absl::IsDataLoss(one.Join()));
  }
}

TEST(RelayTest, MoreThanItHasCreditForEndsIt) {
  RelayOptions options;
  options.window_bytes = kMinRelayWindow;
  OneRelay one(RelaySide::kAccepting, options);
  one.Say(Hello() + Frame(1, RelayKind::kOpen, 0));
  // Nobody reads the stream's far end: its socket takes some, the rest is owed credit for.
  const std::string piece = Frame(1, RelayKind::kData, 32u << 10, std::string(32u << 10, 'x'));
  for (int i = 0; i < 100; ++i) {
    size_t sent = 0;
    while (sent < piece.size()) {
      const ssize_t n = ::send(one.peer(), piece.data() + sent, piece.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) break;
      sent += static_cast<size_t>(n);
    }
    if (sent < piece.size()) break;
  }
  EXPECT_TRUE(absl::IsDataLoss(one.Join()));
}

TEST(RelayTest, OpeningOneTakesNoStreams) {
  OneRelay one(RelaySide::kOpening);
  one.Say(Hello() + Frame(1, RelayKind::kOpen, 0));
  EXPECT_TRUE(absl::IsDataLoss(one.Join()));
}

TEST(RelayTest, FramesOfStreamsThatHaveEndedArePassedOver) {
  OneRelay one(RelaySide::kAccepting);
  one.Say(Hello() + Frame(1, RelayKind::kOpen, 0) + Frame(1, RelayKind::kEnd, 0) +
          Frame(1, RelayKind::kStop, 0));
  // It ends the stream for its part: then it is gone.
  EXPECT_EQ(ReadRaw(one.peer(), kRelayHeaderBytes), Frame(1, RelayKind::kEnd, 0));
  one.Say(Frame(1, RelayKind::kStop, 0) + Frame(1, RelayKind::kData, 1, "x"));
  one.Say(Frame(2, RelayKind::kOpen, 0) + Frame(2, RelayKind::kStop, 0));
  EXPECT_EQ(ReadRaw(one.peer(), kRelayHeaderBytes), Frame(2, RelayKind::kEnd, 0));
}

TEST(RelayTest, AcceptingOneSaysNothingBeforeItsServerIsReady) {
  auto [here, there] = MakeStreamPair();
  auto out = Duplicate(here);
  RunningRelay relay(RelaySide::kAccepting, std::move(here), std::move(out));
  relay.CloseChannel();  // as a server that cannot start
  EXPECT_TRUE(absl::IsUnavailable(relay.Join()));
  EXPECT_EQ(ReadRaw(there.get(), 1), "");
}

}  // namespace
}  // namespace predump::transport
