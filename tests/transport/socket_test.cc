#include "src/transport/socket.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <unistd.h>

#include <vector>

#include "tests/transport/stream_pair.h"

namespace predump::transport {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kSoon = absl::Seconds(10);

Address AddressOf(const Listener& listener) { return *Address::Parse(listener.address.ToString()); }

int IntOption(int fd, int level, int name) {
  int value = -1;
  socklen_t length = sizeof value;
  EXPECT_EQ(::getsockopt(fd, level, name, &value, &length), 0);
  return value;
}

TEST(SocketTest, ListenReportsTheRealPortAndAcceptsWhatConnects) {
  auto listener = Listen(*Address::Parse("127.0.0.1:0"));
  ASSERT_TRUE(listener.ok()) << listener.status();
  EXPECT_NE(listener->address.port(), 0);
  EXPECT_TRUE(absl::IsUnavailable(Accept(listener->fd.get()).status()));

  auto client = Connect(AddressOf(*listener), {}, Deadline::After(kSoon));
  ASSERT_TRUE(client.ok()) << client.status();
  auto accepted = Accept(listener->fd.get());
  ASSERT_TRUE(accepted.ok()) << accepted.status();
  EXPECT_TRUE(accepted->peer.IsLoopback());
  WriteRaw(client->get(), "x");
  EXPECT_EQ(*WaitFor(accepted->fd.get(), POLLIN, Deadline::After(kSoon)), WaitResult::kReady);
  EXPECT_EQ(ReadRaw(accepted->fd.get(), 1), "x");
  EXPECT_GT(RoundTrip(client->get()), absl::ZeroDuration());
  EXPECT_LT(RoundTrip(client->get()), kSoon);
  EXPECT_EQ(RoundTrip(listener->fd.get()), absl::ZeroDuration());
}

TEST(SocketTest, ConnectedSocketsBlockAndNoticeASilentPeer) {
  auto listener = Listen(*Address::Parse("127.0.0.1:0"));
  ASSERT_TRUE(listener.ok());
  SocketOptions options;
  options.peer_timeout = absl::Seconds(8);
  options.congestion = "reno";
  auto client = Connect(AddressOf(*listener), options, Deadline::After(kSoon));
  ASSERT_TRUE(client.ok()) << client.status();
  EXPECT_EQ(::fcntl(client->get(), F_GETFL) & O_NONBLOCK, 0);
  EXPECT_EQ(::fcntl(client->get(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  EXPECT_EQ(IntOption(client->get(), IPPROTO_TCP, TCP_NODELAY), 1);
  EXPECT_EQ(IntOption(client->get(), SOL_SOCKET, SO_KEEPALIVE), 1);
  EXPECT_EQ(IntOption(client->get(), IPPROTO_TCP, TCP_USER_TIMEOUT), 8000);
  EXPECT_EQ(IntOption(client->get(), IPPROTO_TCP, TCP_KEEPIDLE), 2);
  char congestion[16] = {};
  socklen_t length = sizeof congestion;
  ASSERT_EQ(::getsockopt(client->get(), IPPROTO_TCP, TCP_CONGESTION, congestion, &length), 0);
  EXPECT_STREQ(congestion, "reno");
}

TEST(SocketTest, UnknownCongestionControlIsNamed) {
  auto listener = Listen(*Address::Parse("127.0.0.1:0"));
  ASSERT_TRUE(listener.ok());
  SocketOptions options;
  options.congestion = "no-such-control";
  const auto client = Connect(AddressOf(*listener), options, Deadline::After(kSoon));
  EXPECT_TRUE(absl::IsInvalidArgument(client.status())) << client.status();
  EXPECT_THAT(client.status().message(), HasSubstr("no-such-control"));
}

TEST(SocketTest, RefusedConnectionIsUnavailableAndNamesTheAddress) {
  Address address = *Address::Parse("127.0.0.1:1");
  {
    auto listener = Listen(*Address::Parse("127.0.0.1:0"));
    ASSERT_TRUE(listener.ok());
    address = AddressOf(*listener);
  }
  const auto client = Connect(address, {}, Deadline::After(kSoon));
  EXPECT_TRUE(absl::IsUnavailable(client.status())) << client.status();
  EXPECT_THAT(client.status().message(), HasSubstr(address.ToString()));
}

TEST(SocketTest, ConnectGivesUpAtItsDeadline) {
  // A full backlog drops further handshakes, as a dead host would.
  base::UniqueFd full(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in any = {};
  any.sin_family = AF_INET;
  any.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::bind(full.get(), reinterpret_cast<sockaddr*>(&any), sizeof any), 0);
  ASSERT_EQ(::listen(full.get(), 0), 0);
  socklen_t length = sizeof any;
  ASSERT_EQ(::getsockname(full.get(), reinterpret_cast<sockaddr*>(&any), &length), 0);
  const Address address = *Address::Parse("127.0.0.1:" + std::to_string(ntohs(any.sin_port)));
  std::vector<base::UniqueFd> fillers;
  absl::Status status;
  for (int i = 0; i < 8 && status.ok(); ++i) {
    auto filler = Connect(address, {}, Deadline::After(absl::Milliseconds(200)));
    status = filler.status();
    if (filler.ok()) fillers.push_back(*std::move(filler));
  }
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
}

TEST(SocketTest, PortInUseIsReportedWithTheAddress) {
  auto first = Listen(*Address::Parse("127.0.0.1:0"));
  ASSERT_TRUE(first.ok());
  const auto second = Listen(AddressOf(*first));
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(second.status().message(), HasSubstr(first->address.ToString()));
}

TEST(WaitForTest, ReportsDeadlineReadinessAndTheOtherDescriptor) {
  auto [a, b] = MakeStreamPair();
  auto [c, d] = MakeStreamPair();
  EXPECT_EQ(*WaitFor(a.get(), POLLIN, Deadline::After(absl::Milliseconds(5)), c.get()),
            WaitResult::kDeadline);
  WriteRaw(b.get(), "x");
  EXPECT_EQ(*WaitFor(a.get(), POLLIN, Deadline::Never(), c.get()), WaitResult::kReady);
  WriteRaw(d.get(), "x");
  EXPECT_EQ(*WaitFor(a.get(), POLLIN, Deadline::Never(), c.get()), WaitResult::kOther);
}

TEST(DeadlineTest, InfiniteWaitsNeverPass) {
  EXPECT_TRUE(Deadline::After(absl::InfiniteDuration()).never());
  EXPECT_FALSE(Deadline::Never().passed());
  EXPECT_TRUE(Deadline::After(absl::ZeroDuration()).passed());
  EXPECT_EQ(Deadline::After(-absl::Seconds(1)).Remaining(), absl::ZeroDuration());
  const Deadline soon = Deadline::After(absl::Hours(1));
  EXPECT_FALSE(Deadline::Earlier(soon, Deadline::Never()).never());
}

}  // namespace
}  // namespace predump::transport
