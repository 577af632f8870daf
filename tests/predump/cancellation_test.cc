#include "src/predump/cancellation.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "gtest/gtest.h"

namespace predump {
namespace {

TEST(CancellationTest, RequestWakesABlockedReceiver) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  Cancellation cancellation;
  WatchedSocket watched(cancellation, ends[0]);
  std::thread canceller([&] { EXPECT_TRUE(cancellation.Request("why not")); });
  char byte;
  EXPECT_EQ(::recv(ends[0], &byte, 1, 0), 0);
  canceller.join();
  EXPECT_TRUE(cancellation.requested());
  EXPECT_EQ(cancellation.reason(), "why not");
  EXPECT_FALSE(cancellation.EnterCommit());
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST(CancellationTest, ASocketWatchedAfterTheRequestIsShutDownToo) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  Cancellation cancellation;
  ASSERT_TRUE(cancellation.Request("early"));
  WatchedSocket watched(cancellation, ends[0]);
  EXPECT_EQ(::send(ends[0], "x", 1, MSG_NOSIGNAL), -1);
  EXPECT_EQ(errno, EPIPE);
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST(CancellationTest, NothingCancelsAfterCommit) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  Cancellation cancellation;
  WatchedSocket watched(cancellation, ends[0]);
  ASSERT_TRUE(cancellation.EnterCommit());
  EXPECT_FALSE(cancellation.Request("late"));
  EXPECT_EQ(::send(ends[0], "x", 1, MSG_NOSIGNAL), 1);
  EXPECT_FALSE(cancellation.requested());
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST(CancellationTest, ExactlyOneOfCancelAndCommitWins) {
  for (int i = 0; i < 2000; ++i) {
    Cancellation cancellation;
    std::atomic<int> wins{0};
    std::thread canceller([&] { wins += cancellation.Request("race") ? 1 : 0; });
    wins += cancellation.EnterCommit() ? 1 : 0;
    canceller.join();
    ASSERT_EQ(wins, 1);
  }
}

}  // namespace
}  // namespace predump
