#include "src/kernel/bpf/process_events.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "src/base/errors.h"
#include "tests/kernel/bpf/test_child.h"

namespace predump::kernel {
namespace {

using testing::Shared;
using testing::TestChild;

struct Facts {
  int commands[2];
  pid_t pid;  // as the child sees itself
  pid_t thread;
  std::atomic<pid_t> forked;
};

void* ThreadBody(void* facts) {
  static_cast<Facts*>(facts)->thread = static_cast<pid_t>(syscall(SYS_gettid));
  return nullptr;
}

void Obey(Facts& facts, char command) {
  switch (command) {
    case 't': {
      pthread_t thread;
      pthread_create(&thread, nullptr, ThreadBody, &facts);
      pthread_join(thread, nullptr);
      break;
    }
    case 'f': {
      const pid_t pid = static_cast<pid_t>(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
      if (pid == 0) _exit(0);
      facts.forked = pid;
      waitpid(pid, nullptr, 0);
      break;
    }
    case 'x':
      execl("/bin/sh", "sh", "-c", "read line", nullptr);
      break;
    default:
      _exit(7);
  }
}

class ProcessEventsTest : public ::testing::TestWithParam<TestChild::PidNamespace> {
 protected:
  ProcessEventsTest() { EXPECT_EQ(pipe(facts_->commands), 0); }
  ~ProcessEventsTest() override {
    close(facts_->commands[0]);
    close(facts_->commands[1]);
  }

  void Start(uint32_t ring_bytes = ProcessEvents::kDefaultRingBytes) {
    child_ = std::make_unique<TestChild>(
        [this] {
          facts_->pid = static_cast<pid_t>(syscall(SYS_getpid));
          signal(SIGUSR1, SIG_IGN);
          // So that a shell started later reads the commands too.
          dup2(facts_->commands[0], STDIN_FILENO);
          char command = 0;
          while (read(facts_->commands[0], &command, 1) == 1) Obey(*facts_, command);
        },
        GetParam());
    ASSERT_TRUE(TestChild::WaitUntilInside(child_->pid(), SYS_read));
    auto events = ProcessEvents::Create(child_->pid(), ring_bytes);
    ASSERT_TRUE(events.ok()) << events.status();
    events_ = std::make_unique<ProcessEvents>(*std::move(events));
  }

  void Command(char command) { ASSERT_EQ(write(facts_->commands[1], &command, 1), 1); }

  // Waits on the descriptor until an event of `kind` came; all events go to `all_`.
  ProcessEvent Await(ProcessEventKind kind) {
    const auto wanted = [kind](const ProcessEvent& event) { return event.kind == kind; };
    while (true) {
      const auto found = std::find_if(all_.begin(), all_.end(), wanted);
      if (found != all_.end()) return *found;
      pollfd descriptor = {events_->poll_fd(), POLLIN, 0};
      if (poll(&descriptor, 1, 10000) != 1) break;
      auto batch = events_->Drain();
      EXPECT_TRUE(batch.ok()) << batch.status();
      all_.insert(all_.end(), batch->begin(), batch->end());
    }
    ADD_FAILURE() << "no event of kind " << static_cast<uint32_t>(kind);
    return {};
  }

  Shared<Facts> facts_;
  std::unique_ptr<TestChild> child_;
  std::unique_ptr<ProcessEvents> events_;
  std::vector<ProcessEvent> all_;
};

TEST_P(ProcessEventsTest, ThreadsComeAndGo) {
  Start();
  Command('t');
  const ProcessEvent created = Await(ProcessEventKind::kThreadCreated);
  EXPECT_EQ(created.record.tid, child_->pid());
  const ProcessEvent exited = Await(ProcessEventKind::kThreadExited);
  EXPECT_EQ(exited.record.tid, created.record.child);
  EXPECT_EQ(created.record.child_own, facts_->thread);
  EXPECT_LE(created.record.monotonic, exited.record.monotonic);
}

TEST_P(ProcessEventsTest, ForkIsAProcessAndItsOwnEndIsNotReported) {
  Start();
  Command('f');
  const ProcessEvent forked = Await(ProcessEventKind::kForked);
  EXPECT_EQ(forked.record.tid, child_->pid());
  // SIGCHLD of the child's end comes last.
  const ProcessEvent signal_event = Await(ProcessEventKind::kSignal);
  EXPECT_EQ(signal_event.record.signal, SIGCHLD);
  // The parent may not have seen its fork return yet.
  ASSERT_TRUE(testing::Eventually([&] { return facts_->forked.load() != 0; }));
  EXPECT_EQ(forked.record.child_own, facts_->forked.load());
  for (const ProcessEvent& event : all_) {
    EXPECT_NE(event.kind, ProcessEventKind::kProcessExited);
    EXPECT_NE(event.kind, ProcessEventKind::kThreadExited);
  }
}

TEST_P(ProcessEventsTest, ExecIsReported) {
  Start();
  Command('x');
  EXPECT_EQ(Await(ProcessEventKind::kExec).record.tid, child_->pid());
}

TEST_P(ProcessEventsTest, SignalTellsNumberAimAndSender) {
  Start();
  ASSERT_EQ(kill(child_->pid(), SIGUSR1), 0);
  const ProcessEvent to_process = Await(ProcessEventKind::kSignal);
  EXPECT_EQ(to_process.record.signal, SIGUSR1);
  EXPECT_EQ(to_process.record.code, SI_USER);
  EXPECT_EQ(to_process.record.sender, static_cast<pid_t>(syscall(SYS_gettid)));
  EXPECT_EQ(to_process.record.to_process, 1);
  EXPECT_EQ(to_process.record.result, 1);  // ignored
  all_.clear();
  ASSERT_EQ(syscall(SYS_tgkill, child_->pid(), child_->pid(), SIGURG), 0);
  const ProcessEvent to_thread = Await(ProcessEventKind::kSignal);
  EXPECT_EQ(to_thread.record.signal, SIGURG);
  EXPECT_EQ(to_thread.record.code, SI_TKILL);
  EXPECT_EQ(to_thread.record.to_process, 0);
}

TEST_P(ProcessEventsTest, EndOfTheLastThreadIsTheEndOfTheProcess) {
  Start();
  Command('q');
  const ProcessEvent exited = Await(ProcessEventKind::kProcessExited);
  EXPECT_EQ(exited.record.tid, child_->pid());
  EXPECT_EQ(exited.record.exit_code, 7 << 8);
  for (const ProcessEvent& event : all_) {
    EXPECT_NE(event.kind, ProcessEventKind::kThreadExited);
  }
}

TEST_P(ProcessEventsTest, FullRingIsReportedNotSilent) {
  Start(4096);
  constexpr uint64_t kSignals = 500;
  for (uint64_t i = 0; i < kSignals; ++i) ASSERT_EQ(kill(child_->pid(), SIGUSR1), 0);
  auto drained = events_->Drain();
  ASSERT_TRUE(drained.ok()) << drained.status();
  ASSERT_FALSE(drained->empty());
  EXPECT_EQ(drained->back().kind, ProcessEventKind::kLost);
  EXPECT_GT(drained->size(), 10u);
  EXPECT_EQ(drained->size() - 1 + drained->back().lost_events, kSignals);
  // Once reported it is over: events come again, and the loss is not told twice.
  ASSERT_EQ(kill(child_->pid(), SIGUSR1), 0);
  drained = events_->Drain();
  ASSERT_TRUE(drained.ok()) << drained.status();
  ASSERT_EQ(drained->size(), 1u);
  EXPECT_EQ(drained->front().kind, ProcessEventKind::kSignal);
}

TEST_P(ProcessEventsTest, OtherProcessesAreNotReported) {
  Start();
  TestChild stranger([] { _exit(0); });
  stranger.Wait();
  const auto drained = events_->Drain();
  ASSERT_TRUE(drained.ok()) << drained.status();
  EXPECT_TRUE(drained->empty());
}

INSTANTIATE_TEST_SUITE_P(PidNamespaces, ProcessEventsTest,
                         ::testing::Values(TestChild::PidNamespace::kSame,
                                           TestChild::PidNamespace::kNew));

TEST(ProcessEvents, MissingProcessIsTargetExited) {
  TestChild child([] {});
  const pid_t pid = child.pid();
  child.Wait();
  EXPECT_TRUE(base::IsTargetExited(ProcessEvents::Create(pid).status()));
}

}  // namespace
}  // namespace predump::kernel
