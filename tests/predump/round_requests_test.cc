#include "src/predump/round_requests.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <optional>
#include <string>
#include <thread>

#include "gtest/gtest.h"
#include "src/base/errors.h"
#include "src/base/unique_fd.h"

namespace predump {
namespace {

class RoundRequestsTest : public testing::Test {
 protected:
  void SetUp() override {
    child_ = ::fork();  // before the pipe: it must not hold the writing end open
    if (child_ == 0) {
      for (;;) ::pause();
    }
    ASSERT_GT(child_, 0);
    absl::StatusOr<kernel::ProcessHandle> process = kernel::ProcessHandle::Open(child_);
    ASSERT_TRUE(process.ok()) << process.status();
    process_.emplace(*std::move(process));
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    input_ = base::UniqueFd(ends[0]);
    writer_ = base::UniqueFd(ends[1]);
  }

  void TearDown() override {
    ::kill(child_, SIGKILL);
    ::waitpid(child_, nullptr, 0);
  }

  void Write(const std::string& text) {
    ASSERT_EQ(::write(writer_.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }

  base::UniqueFd input_;
  base::UniqueFd writer_;
  pid_t child_ = -1;
  std::optional<kernel::ProcessHandle> process_;
  Cancellation cancellation_;
};

TEST_F(RoundRequestsTest, EachLineIsARoundAndTheEndOfInputTheEnd) {
  Write("\nround\nfreez");
  ASSERT_TRUE(writer_.Close().ok());
  RoundRequests requests(input_.get(), /*rounds_only=*/true);
  EXPECT_EQ(*requests.Next(cancellation_, *process_), NextStep::kAnotherRound);
  EXPECT_EQ(*requests.Next(cancellation_, *process_), NextStep::kAnotherRound);
  EXPECT_EQ(*requests.Next(cancellation_, *process_), NextStep::kFreeze);
  EXPECT_FALSE(requests.freeze_asked());
}

TEST_F(RoundRequestsTest, AMoveFreezesWhenAskedToOnly) {
  Write("round\nfreeze\n");
  ASSERT_TRUE(writer_.Close().ok());
  RoundRequests requests(input_.get(), /*rounds_only=*/false);
  EXPECT_EQ(*requests.Next(cancellation_, *process_), NextStep::kAnotherRound);
  EXPECT_FALSE(requests.freeze_asked());
  EXPECT_EQ(*requests.Next(cancellation_, *process_), NextStep::kFreeze);
  EXPECT_TRUE(requests.freeze_asked());
  // Tried again after a bad moment.
  EXPECT_EQ(*requests.Next(cancellation_, *process_), NextStep::kFreeze);
}

TEST_F(RoundRequestsTest, AMoveWhoseScriptIsGoneIsCancelled) {
  Write("freeze");  // and no end of the line
  ASSERT_TRUE(writer_.Close().ok());
  RoundRequests requests(input_.get(), /*rounds_only=*/false);
  EXPECT_EQ(*requests.Next(cancellation_, *process_), NextStep::kCancel);
}

TEST_F(RoundRequestsTest, ALineInTwoPiecesIsOneRound) {
  RoundRequests requests(input_.get(), /*rounds_only=*/true);
  std::thread writer([&] {
    Write("rou");
    Write("nd\n");
    EXPECT_TRUE(writer_.Close().ok());
  });
  EXPECT_EQ(*requests.Next(cancellation_, *process_), NextStep::kAnotherRound);
  EXPECT_EQ(*requests.Next(cancellation_, *process_), NextStep::kFreeze);
  writer.join();
}

TEST_F(RoundRequestsTest, OtherWordsAreRefused) {
  for (const bool rounds_only : {false, true}) {
    Write(rounds_only ? "freeze\n" : "halt\n");
    RoundRequests requests(input_.get(), rounds_only);
    const absl::Status status = requests.Next(cancellation_, *process_).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  }
}

TEST_F(RoundRequestsTest, ALineWithoutEndIsNotCollected) {
  Write(std::string(4096, 'x'));
  RoundRequests requests(input_.get(), /*rounds_only=*/true);
  const absl::Status status = requests.Next(cancellation_, *process_).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_LT(status.message().size(), 300u);
}

TEST_F(RoundRequestsTest, ACancellationEndsTheWait) {
  RoundRequests requests(input_.get(), /*rounds_only=*/true);
  std::thread canceller([&] { EXPECT_TRUE(cancellation_.Request("enough")); });
  const absl::StatusOr<NextStep> next = requests.Next(cancellation_, *process_);
  canceller.join();
  EXPECT_TRUE(absl::IsCancelled(next.status())) << next.status();
}

TEST_F(RoundRequestsTest, AnEarlierCancellationComesBeforeALine) {
  ASSERT_TRUE(cancellation_.Request("enough"));
  Write("\n\n");
  RoundRequests requests(input_.get(), /*rounds_only=*/true);
  EXPECT_TRUE(absl::IsCancelled(requests.Next(cancellation_, *process_).status()));
}

TEST_F(RoundRequestsTest, TheEndOfTheProcessEndsTheWait) {
  RoundRequests requests(input_.get(), /*rounds_only=*/true);
  std::thread killer([&] { ::kill(child_, SIGKILL); });
  const absl::StatusOr<NextStep> next = requests.Next(cancellation_, *process_);
  killer.join();
  EXPECT_TRUE(base::IsTargetExited(next.status())) << next.status();
}

}  // namespace
}  // namespace predump
