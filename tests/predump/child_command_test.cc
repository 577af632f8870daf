#include "src/predump/child_command.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <utility>
#include <vector>

#include "src/base/unique_fd.h"

namespace predump {
namespace {

using ::testing::ElementsAre;

const absl::Duration kPatience = absl::Seconds(20);

struct Running {
  std::unique_ptr<ChildCommand> command;
  base::UniqueFd input;   // what is written here it reads
  base::UniqueFd output;  // what it writes
};

Running Start(std::vector<std::string> arguments) {
  int in[2];
  int out[2];
  EXPECT_EQ(::pipe2(in, O_CLOEXEC), 0);
  EXPECT_EQ(::pipe2(out, O_CLOEXEC), 0);
  ChildOptions options;
  options.arguments = std::move(arguments);
  options.input = base::UniqueFd(in[0]);
  options.output = base::UniqueFd(out[1]);
  Running running{nullptr, base::UniqueFd(in[1]), base::UniqueFd(out[0])};
  auto command = ChildCommand::Start(std::move(options));
  EXPECT_TRUE(command.ok()) << command.status();
  if (command.ok()) running.command = *std::move(command);
  return running;
}

Running Shell(const std::string& script) { return Start({"sh", "-c", script}); }

std::string ReadAll(int fd) {
  std::string all;
  char bytes[4096];
  ssize_t n;
  while ((n = ::read(fd, bytes, sizeof bytes)) > 0) all.append(bytes, static_cast<size_t>(n));
  return all;
}

TEST(ChildCommandTest, HasItsStreamsAndSaysHowItEnded) {
  Running running = Shell("cat; printf 'one\\r\\ntw\\033o' >&2; exit 7");
  ASSERT_EQ(::write(running.input.get(), "hello", 5), 5);
  running.input = base::UniqueFd();
  EXPECT_EQ(ReadAll(running.output.get()), "hello");
  const ChildExit exit = running.command->End(kPatience);
  EXPECT_FALSE(exit.was_killed);
  ASSERT_TRUE(WIFEXITED(exit.status));
  EXPECT_EQ(WEXITSTATUS(exit.status), 7);
  EXPECT_THAT(running.command->last_words(), ElementsAre("one", "tw o"));
}

TEST(ChildCommandTest, LastWordsAreTheLastOnes) {
  Running running = Shell("for i in 1 2 3 4 5 6 7 8; do echo $i >&2; done");
  running.command->End(kPatience);
  EXPECT_THAT(running.command->last_words(), ElementsAre("3", "4", "5", "6", "7", "8"));
}

TEST(ChildCommandTest, WhatIsNotThereIsNamed) {
  ChildOptions options;
  options.arguments = {"predump-no-such-command"};
  options.input = base::UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC));
  options.output = base::UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC));
  const auto command = ChildCommand::Start(std::move(options));
  EXPECT_TRUE(absl::IsNotFound(command.status())) << command.status();
  EXPECT_THAT(command.status().message(), ::testing::HasSubstr("predump-no-such-command"));
}

TEST(ChildCommandTest, WhatDoesNotEndIsEnded) {
  Running running = Shell("cat");
  const ChildExit exit = running.command->End(absl::Milliseconds(10));
  EXPECT_TRUE(exit.was_killed);
  EXPECT_TRUE(WIFSIGNALED(exit.status));
}

TEST(ChildCommandTest, SomebodyElseHoldingItsErrorsIsNotAwaited) {
  // As an ssh that leaves a master connection behind.
  Running running = Shell("exec 3<&0; (read line <&3) & echo done >&2");
  const ChildExit exit = running.command->End(kPatience);
  EXPECT_FALSE(exit.was_killed);
  EXPECT_THAT(running.command->last_words(), ElementsAre("done"));
}

TEST(ChildCommandTest, TakesNoSignalsOverButThoseOfTheTerminal) {
  // Blocked here by whoever waits for them; ignored there.
  sigset_t set;
  sigset_t before;
  ::sigemptyset(&set);
  ::sigaddset(&set, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &set, &before);
  ::signal(SIGPIPE, SIG_IGN);
  Running running = Start({"grep", "-E", "^Sig(Blk|Ign):", "/proc/self/status"});
  ::signal(SIGPIPE, SIG_DFL);
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  EXPECT_EQ(ReadAll(running.output.get()),
            "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000003\n");  // SIGHUP, SIGINT
}

}  // namespace
}  // namespace predump
