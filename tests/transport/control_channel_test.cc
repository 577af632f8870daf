#include "src/transport/control_channel.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "absl/strings/str_cat.h"
#include "src/base/clock.h"
#include "src/transport/data_format.h"
#include "tests/transport/stream_pair.h"

namespace predump::transport {
namespace {

using ::testing::HasSubstr;

Deadline Soon() { return Deadline::After(absl::Seconds(10)); }
Deadline Now() { return Deadline::After(absl::ZeroDuration()); }

// A channel and the raw other end.
class ControlChannelTest : public ::testing::Test {
 protected:
  ControlChannelTest() : ControlChannelTest(MakeStreamPair()) {}

  void SendWhole(const std::string& bytes) { WriteRaw(peer_.get(), bytes); }
  void ClosePeer() { peer_ = base::UniqueFd(); }

  ControlChannel channel_;
  base::UniqueFd peer_;

 private:
  explicit ControlChannelTest(std::pair<base::UniqueFd, base::UniqueFd> pair)
      : channel_(*ControlChannel::Adopt(std::move(pair.first))), peer_(std::move(pair.second)) {}
};

std::string CancelFrame(const std::string& reason) {
  proto::Cancel cancel;
  cancel.set_reason(reason);
  const std::string body = cancel.SerializeAsString();
  return RawFrame(proto::CONTROL_CANCEL, 0, static_cast<uint32_t>(body.size()), body);
}

TEST_F(ControlChannelTest, MagicIsReadableText) {
  ASSERT_TRUE(channel_.SendMagic(Soon()).ok());
  EXPECT_EQ(ReadRaw(peer_.get(), 8), "PRDCTL01");
}

TEST_F(ControlChannelTest, MessagesArriveWholeAndInOrder) {
  auto other = ControlChannel::Adopt(std::move(peer_));
  ASSERT_TRUE(other.ok());
  proto::Cancel cancel;
  for (const char* reason : {"one", "two"}) {
    cancel.set_reason(reason);
    ASSERT_TRUE(other->Send(proto::CONTROL_CANCEL, cancel, Soon()).ok());
  }
  ASSERT_TRUE(other->Send(proto::CONTROL_DONE, proto::Done(), Soon()).ok());
  EXPECT_EQ(channel_.Expect<proto::Cancel>(proto::CONTROL_CANCEL, Soon())->reason(), "one");
  EXPECT_EQ(channel_.Expect<proto::Cancel>(proto::CONTROL_CANCEL, Soon())->reason(), "two");
  EXPECT_TRUE(channel_.Expect<proto::Done>(proto::CONTROL_DONE, Soon()).ok());
}

TEST_F(ControlChannelTest, NothingIsReadBeyondTheFrame) {
  SendWhole(CancelFrame("a") + "tail");
  ASSERT_TRUE(channel_.Receive(Soon()).ok());
  char tail[8];
  EXPECT_EQ(::recv(channel_.fd(), tail, sizeof tail, MSG_PEEK | MSG_DONTWAIT), 4);
}

TEST_F(ControlChannelTest, FrameThatArrivesByteByByteIsPutTogether) {
  for (const char c : CancelFrame("slow but sound")) {
    auto frame = channel_.TryReceive();
    ASSERT_TRUE(frame.ok());
    EXPECT_FALSE(frame->has_value());
    SendWhole(std::string(1, c));
  }
  const auto frame = channel_.Receive(Now());
  ASSERT_TRUE(frame.ok()) << frame.status();
  EXPECT_EQ(ControlChannel::Parse<proto::Cancel>(*frame, proto::CONTROL_CANCEL)->reason(),
            "slow but sound");
}

TEST_F(ControlChannelTest, StreamCutAtEveryByteIsNeverAFrame) {
  const std::string whole = CancelFrame("cut");
  for (size_t size = 0; size < whole.size(); ++size) {
    auto [ours, theirs] = MakeStreamPair();
    auto channel = ControlChannel::Adopt(std::move(ours));
    WriteRaw(theirs.get(), whole.substr(0, size));
    theirs = base::UniqueFd();
    const auto frame = channel->Receive(Soon());
    ASSERT_FALSE(frame.ok()) << size;
    // Between frames a peer may leave; inside one it has broken its word.
    EXPECT_EQ(frame.status().code(),
              size == 0 ? absl::StatusCode::kUnavailable : absl::StatusCode::kDataLoss)
        << size << frame.status();
  }
}

TEST_F(ControlChannelTest, EveryFlippedHeaderBitIsAnErrorOrAnotherShortFrame) {
  const std::string whole = CancelFrame("flip");
  for (size_t bit = 0; bit < 64; ++bit) {
    auto [ours, theirs] = MakeStreamPair();
    auto channel = ControlChannel::Adopt(std::move(ours));
    std::string flipped = whole;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    WriteRaw(theirs.get(), flipped);
    theirs = base::UniqueFd();
    const auto message = channel->Expect<proto::Cancel>(proto::CONTROL_CANCEL, Soon());
    // A shorter length may cut the text at a place where protobuf is content; all else is seen.
    if (message.ok()) {
      EXPECT_NE(message->reason(), "flip") << bit;
    }
  }
}

TEST_F(ControlChannelTest, StrangersAreAllowedOnlyShortMessages) {
  SendWhole(RawFrame(proto::CONTROL_CLIENT_HELLO, 0, kMaxHelloBytes + 1, ""));
  const auto frame = channel_.Receive(Soon());
  EXPECT_TRUE(absl::IsDataLoss(frame.status())) << frame.status();
  EXPECT_THAT(frame.status().message(), HasSubstr("65537"));
}

TEST_F(ControlChannelTest, NobodyIsAllowedMoreThanTheLimit) {
  channel_.set_max_message_bytes(kMaxControlBytes);
  SendWhole(RawFrame(proto::CONTROL_PREPARE, 0, kMaxControlBytes + 1, ""));
  EXPECT_TRUE(absl::IsDataLoss(channel_.Receive(Soon()).status()));
}

TEST_F(ControlChannelTest, UnknownTypesFlagsAndGarbageAreRefusedAtTheHeader) {
  for (const std::string& bytes :
       {RawFrame(0, 0, 0, ""), RawFrame(999, 0, 0, ""), RawFrame(proto::CONTROL_DONE, 1, 0, ""),
        std::string("GET / HTTP/1.0\r\n\r\n")}) {
    auto [ours, theirs] = MakeStreamPair();
    auto channel = ControlChannel::Adopt(std::move(ours));
    WriteRaw(theirs.get(), bytes);
    const auto frame = channel->Receive(Soon());
    EXPECT_TRUE(absl::IsDataLoss(frame.status())) << frame.status();
    // Once broken, always broken: what follows cannot be told from noise.
    EXPECT_TRUE(absl::IsDataLoss(channel->Receive(Soon()).status()));
    EXPECT_TRUE(absl::IsDataLoss(channel->Send(proto::CONTROL_DONE, proto::Done(), Soon())));
  }
}

TEST_F(ControlChannelTest, BodyThatIsNoMessageIsRefused) {
  SendWhole(RawFrame(proto::CONTROL_CANCEL, 0, 3, "\xff\xff\xff"));
  EXPECT_TRUE(
      absl::IsDataLoss(channel_.Expect<proto::Cancel>(proto::CONTROL_CANCEL, Soon()).status()));
}

TEST_F(ControlChannelTest, MissingRequiredFieldIsRefused) {
  SendWhole(RawFrame(proto::CONTROL_FATE, 0, 0, ""));
  EXPECT_TRUE(absl::IsDataLoss(channel_.Expect<proto::Fate>(proto::CONTROL_FATE, Soon()).status()));
}

TEST_F(ControlChannelTest, AnotherMessageThanExpectedNamesBoth) {
  SendWhole(RawFrame(proto::CONTROL_DONE, 0, 0, ""));
  const auto reply = channel_.Expect<proto::Ready>(proto::CONTROL_READY, Soon());
  EXPECT_TRUE(absl::IsDataLoss(reply.status()));
  EXPECT_THAT(reply.status().message(), HasSubstr("Done"));
  EXPECT_THAT(reply.status().message(), HasSubstr("Ready"));
}

TEST_F(ControlChannelTest, FailedBecomesAStatusWithReasonAndBlockers) {
  proto::Failed failed;
  failed.set_reason("cannot land");
  auto* blocker = failed.add_blockers();
  blocker->set_what("fd 7");
  blocker->set_reason("no such file");
  blocker->set_advice("copy it");
  const std::string body = failed.SerializeAsString();
  SendWhole(RawFrame(proto::CONTROL_FAILED, 0, static_cast<uint32_t>(body.size()), body));
  const auto reply = channel_.Expect<proto::Ready>(proto::CONTROL_READY, Soon());
  EXPECT_TRUE(absl::IsFailedPrecondition(reply.status()));
  for (const char* part : {"cannot land", "fd 7", "no such file", "copy it"}) {
    EXPECT_THAT(reply.status().message(), HasSubstr(part));
  }
}

TEST_F(ControlChannelTest, CancelInPlaceOfAnAnswerIsCancelled) {
  SendWhole(CancelFrame("enough"));
  EXPECT_TRUE(
      absl::IsCancelled(channel_.Expect<proto::Ready>(proto::CONTROL_READY, Soon()).status()));
}

TEST_F(ControlChannelTest, PeerThatLeavesIsUnavailable) {
  ClosePeer();
  EXPECT_TRUE(absl::IsUnavailable(channel_.Receive(Soon()).status()));
  EXPECT_TRUE(absl::IsUnavailable(channel_.Send(proto::CONTROL_DONE, proto::Done(), Soon())));
}

TEST_F(ControlChannelTest, SilentPeerCostsNoMoreThanTheDeadlineAndLosesNothing) {
  const base::Stopwatch watch;
  EXPECT_TRUE(
      absl::IsDeadlineExceeded(channel_.Receive(Deadline::After(absl::Milliseconds(30))).status()));
  EXPECT_GE(watch.Elapsed(), absl::Milliseconds(30));
  EXPECT_LT(watch.Elapsed(), absl::Seconds(5));
  SendWhole(CancelFrame("late"));
  EXPECT_TRUE(channel_.Expect<proto::Cancel>(proto::CONTROL_CANCEL, Soon()).ok());
}

TEST_F(ControlChannelTest, TricklingPeerCannotStretchTheDeadline) {
  channel_.set_max_message_bytes(kMaxControlBytes);
  SendWhole(RawFrame(proto::CONTROL_PREPARE, 0, kMaxControlBytes, ""));
  std::thread trickle([this] {
    while (::send(peer_.get(), "x", 1, MSG_NOSIGNAL) == 1) ::usleep(500);
  });
  EXPECT_TRUE(
      absl::IsDeadlineExceeded(channel_.Receive(Deadline::After(absl::Milliseconds(50))).status()));
  ::shutdown(channel_.fd(), SHUT_RDWR);
  trickle.join();
}

TEST_F(ControlChannelTest, PeerThatDoesNotReadCannotHoldASendPastItsDeadline) {
  proto::Cancel huge;
  huge.set_reason(std::string(8u << 20, 'x'));
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      channel_.Send(proto::CONTROL_CANCEL, huge, Deadline::After(absl::Milliseconds(30)))));
  // A part is out: the next frame would be read as the rest of this one.
  EXPECT_FALSE(channel_.Send(proto::CONTROL_DONE, proto::Done(), Soon()).ok());
}

TEST_F(ControlChannelTest, LargeMessagesPass) {
  auto other = ControlChannel::Adopt(std::move(peer_));
  other->set_max_message_bytes(kMaxControlBytes);
  proto::Cancel huge;
  huge.set_reason(std::string(9u << 20, 'x'));
  std::thread sender([&] { EXPECT_TRUE(channel_.Send(proto::CONTROL_CANCEL, huge, Soon()).ok()); });
  const auto got = other->Expect<proto::Cancel>(proto::CONTROL_CANCEL, Soon());
  sender.join();
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(got->reason().size(), 9u << 20);
}

TEST_F(ControlChannelTest, MessageTooLargeToReceiveIsNotSent) {
  proto::Cancel huge;
  huge.set_reason(std::string(kMaxControlBytes, 'x'));
  EXPECT_TRUE(absl::IsInvalidArgument(channel_.Send(proto::CONTROL_CANCEL, huge, Soon())));
  char unused;
  EXPECT_EQ(::recv(peer_.get(), &unused, 1, MSG_DONTWAIT), -1);
}

TEST_F(ControlChannelTest, IncompleteMessageIsNotSent) {
  EXPECT_TRUE(absl::IsInvalidArgument(channel_.Send(proto::CONTROL_FATE, proto::Fate(), Soon())));
}

TEST(HandshakeTest, BothSidesLearnTheOthersFactsAndClocks) {
  auto [a, b] = MakeStreamPair();
  auto client = ControlChannel::Adopt(std::move(a));
  auto server = ControlChannel::Adopt(std::move(b));
  proto::HostFacts source_facts;
  source_facts.set_kernel_release("source");
  proto::HostFacts target_facts;
  target_facts.set_kernel_release("target");
  absl::StatusOr<proto::ClientHello> client_hello = absl::UnknownError("not run");
  std::thread thread([&] { client_hello = ServerHandshake(*server, target_facts, Soon()); });
  const auto server_hello = ClientHandshake(*client, source_facts, Soon());
  thread.join();
  ASSERT_TRUE(server_hello.ok()) << server_hello.status();
  ASSERT_TRUE(client_hello.ok()) << client_hello.status();
  EXPECT_EQ(server_hello->host().kernel_release(), "target");
  EXPECT_EQ(client_hello->host().kernel_release(), "source");
  EXPECT_GT(server_hello->host().monotonic_ns(), 0);
  EXPECT_GE(server_hello->host().boottime_ns(), server_hello->host().monotonic_ns());
}

TEST(HandshakeTest, HellosLiftTheLimitAndFailuresDoNot) {
  auto [ours, theirs] = MakeStreamPair();
  auto channel = ControlChannel::Adopt(std::move(ours));
  proto::ClientHello hello;
  hello.set_protocol_version(kProtocolVersion);
  const std::string body = hello.SerializeAsString();
  WriteRaw(theirs.get(),
           RawFrame(proto::CONTROL_CLIENT_HELLO, 0, static_cast<uint32_t>(body.size()), body));
  ASSERT_TRUE(ServerHandshake(*channel, {}, Soon()).ok());
  WriteRaw(theirs.get(), RawFrame(proto::CONTROL_CANCEL, 0, kMaxHelloBytes + 1, ""));
  EXPECT_TRUE(absl::IsDeadlineExceeded(channel->Receive(Now()).status()));
}

TEST(HandshakeTest, AnotherVersionIsNamedOnBothSides) {
  auto [ours, theirs] = MakeStreamPair();
  auto channel = ControlChannel::Adopt(std::move(ours));
  proto::ClientHello hello;
  hello.set_protocol_version(77);
  hello.set_program_version("9.9");
  std::string body = hello.SerializeAsString();
  WriteRaw(theirs.get(),
           RawFrame(proto::CONTROL_CLIENT_HELLO, 0, static_cast<uint32_t>(body.size()), body));
  const auto at_server = ServerHandshake(*channel, {}, Soon());
  EXPECT_TRUE(absl::IsFailedPrecondition(at_server.status())) << at_server.status();
  EXPECT_THAT(at_server.status().message(), HasSubstr("version 77"));
  EXPECT_THAT(at_server.status().message(), HasSubstr(absl::StrCat("version ", kProtocolVersion)));
  EXPECT_THAT(at_server.status().message(), HasSubstr("9.9"));
  // The other end got an answer from which it can say the same.
  auto peer = ControlChannel::Adopt(std::move(theirs));
  const auto answer = peer->Expect<proto::ServerHello>(proto::CONTROL_SERVER_HELLO, Soon());
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->protocol_version(), kProtocolVersion);
}

TEST(HandshakeTest, ClientRefusesAServerOfAnotherVersion) {
  auto [ours, theirs] = MakeStreamPair();
  auto channel = ControlChannel::Adopt(std::move(ours));
  proto::ServerHello hello;
  hello.set_protocol_version(77);
  const std::string body = hello.SerializeAsString();
  WriteRaw(theirs.get(),
           RawFrame(proto::CONTROL_SERVER_HELLO, 0, static_cast<uint32_t>(body.size()), body));
  const auto at_client = ClientHandshake(*channel, {}, Soon());
  EXPECT_TRUE(absl::IsFailedPrecondition(at_client.status())) << at_client.status();
  EXPECT_THAT(at_client.status().message(), HasSubstr("version 77"));
}

TEST(ControlTypeNameTest, IsTheMessagesName) {
  EXPECT_EQ(ControlTypeName(proto::CONTROL_BEGIN_REPLY), "BeginReply");
  EXPECT_EQ(ControlTypeName(99), "message type 99");
}

}  // namespace
}  // namespace predump::transport
