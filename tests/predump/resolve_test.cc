#include "src/predump/resolve.h"

#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/kernel/freezer.h"
#include "src/kernel/procfs.h"
#include "src/predump/journal.h"
#include "tests/kernel/child_process.h"
#include "tests/support/temp_dir.h"

namespace predump {
namespace {

using kernel::ChildProcess;
using kernel::Eventually;
using kernel::FrozenProcess;
using kernel::ProcessHandle;
using kernel::SharedValue;
using ::testing::HasSubstr;
using transport::Deadline;

constexpr char kBoot[] = "11111111-the-boot-it-was-sent-to";
constexpr char kStore[] = "the store of it";

// Answers every question about a fate, from a host of this boot.
void Answer(int listener, const std::string& boot_id, const std::string& store_id,
            proto::Fate::Outcome outcome) {
  for (;;) {
    struct pollfd waiting = {listener, POLLIN, 0};
    ::poll(&waiting, 1, -1);
    auto connection = transport::Accept(listener);
    if (!connection.ok()) continue;
    const Deadline soon = Deadline::After(absl::Seconds(5));
    struct pollfd readable = {connection->fd.get(), POLLIN, 0};
    uint64_t magic = 0;
    ::poll(&readable, 1, 5000);
    if (::read(connection->fd.get(), &magic, sizeof magic) != sizeof magic) continue;
    auto channel = transport::ControlChannel::Adopt(std::move(connection->fd));
    proto::HostFacts facts;
    facts.set_boot_id(boot_id);
    facts.set_fate_store_id(store_id);
    if (!transport::ServerHandshake(*channel, facts, soon).ok()) continue;
    if (!channel->Expect<proto::QueryFate>(proto::CONTROL_QUERY_FATE, soon).ok()) continue;
    proto::Fate fate;
    fate.set_outcome(outcome);
    channel->Send(proto::CONTROL_FATE, fate, soon).IgnoreError();
  }
}

class ResolveTest : public ::testing::Test {
 protected:
  ResolveTest()
      : child_([this] {
          for (;;) ++*steps_;
        }),
        process_(*ProcessHandle::Open(child_.pid())) {}

  // As an engine leaves it that dies after Commit. The stop may still be on its way.
  // `pid_namespace` 0: ours.
  void DieCommitting(const std::string& target, uint64_t pid_namespace = 0) {
    SharedValue<std::atomic<int>> committed;
    ChildProcess engine([&] {
      auto frozen = FrozenProcess::Freeze(process_, absl::Seconds(5));
      if (!frozen.ok() || !frozen->QueueStop().ok()) ::_exit(1);
      *committed = 1;
      for (;;) ::pause();
    });
    ASSERT_TRUE(Eventually([&] { return *committed == 1; }));
    JournalEntry entry;
    entry.session_id = "sixteen bytes id";
    entry.process = *kernel::ProcessIdentity::Of(process_);
    if (pid_namespace != 0) entry.process.pid_namespace = pid_namespace;
    entry.command = "test";
    entry.target = target;
    entry.target_boot_id = kBoot;
    entry.target_store_id = kStore;
    entry.engine = entry.process;
    entry.engine.pid = engine.pid();
    entry.engine.start_time_ticks = 1;
    const auto journal = Journal::Open(directory_.File("source"));
    ASSERT_TRUE(journal.ok()) << journal.status();
    ASSERT_TRUE(journal->Prepare(entry).ok());
    ASSERT_TRUE(journal->Commit(entry).ok());
  }

  ResolvedProcess ResolveIt(std::optional<PersonsDecision> decision) {
    ResolveOptions options;
    options.state_directory = directory_.path();
    options.pid = process_.pid();
    options.decision = decision;
    const auto resolution = Resolve(options);
    EXPECT_TRUE(resolution.ok()) << resolution.status();
    return resolution.ok() ? resolution->processes.front() : ResolvedProcess();
  }

  bool Runs() {
    const long before = *steps_;
    return Eventually([&] { return *steps_ > before; });
  }

  // With a page server of `boot_id` that gives `outcome`.
  ResolvedProcess ResolveByAsking(const std::string& boot_id, proto::Fate::Outcome outcome,
                                  const std::string& store_id = kStore) {
    auto listener = transport::Listen(*transport::Address::Parse("127.0.0.1:0"));
    EXPECT_TRUE(listener.ok()) << listener.status();
    ChildProcess server([&] { Answer(listener->fd.get(), boot_id, store_id, outcome); });
    DieCommitting(listener->address.ToString());
    return ResolveIt(std::nullopt);
  }

  test_support::TempDir directory_ = *test_support::TempDir::Create();
  SharedValue<std::atomic<long>> steps_;
  ChildProcess child_;
  ProcessHandle process_;
};

TEST_F(ResolveTest, ProcessThatNeverRanAtTheTargetGoesOn) {
  const ResolvedProcess resolved = ResolveByAsking(kBoot, proto::Fate::DESTROYED);
  EXPECT_EQ(resolved.result, ResolvedProcess::Result::kResumed) << resolved.message;
  EXPECT_TRUE(Runs());
}

TEST_F(ResolveTest, ProcessThatRunsAtTheTargetIsEnded) {
  const ResolvedProcess resolved = ResolveByAsking(kBoot, proto::Fate::RUNNING);
  EXPECT_EQ(resolved.result, ResolvedProcess::Result::kEnded) << resolved.message;
  EXPECT_TRUE(*process_.HasExited());
}

// A server of the same boot that keeps its records elsewhere says "destroyed" of everything.
TEST_F(ResolveTest, AnotherStoreIsNotBelievedEither) {
  const ResolvedProcess resolved =
      ResolveByAsking(kBoot, proto::Fate::DESTROYED, "some other store");
  EXPECT_EQ(resolved.result, ResolvedProcess::Result::kUndecided);
  EXPECT_THAT(resolved.message, HasSubstr("--state-dir"));
  EXPECT_TRUE(Eventually([&] { return kernel::ReadStat(process_)->state == 'T'; }));
}

// A host that was restarted, and another host, have no record of the session and say "destroyed";
// the process may have run there, and may have done what cannot be undone.
TEST_F(ResolveTest, AnotherBootIsNotBelievedWhateverItSays) {
  for (const auto outcome : {proto::Fate::DESTROYED, proto::Fate::RUNNING}) {
    const ResolvedProcess resolved = ResolveByAsking("another boot", outcome);
    EXPECT_EQ(resolved.result, ResolvedProcess::Result::kUndecided);
    EXPECT_THAT(resolved.message, HasSubstr("restarted"));
    EXPECT_THAT(resolved.message, HasSubstr("--resume or --end"));
    ASSERT_TRUE(Eventually([&] { return kernel::ReadStat(process_)->state == 'T'; }));
    const ResolvedProcess decided = ResolveIt(PersonsDecision::kResumeHere);
    EXPECT_EQ(decided.result, ResolvedProcess::Result::kResumed) << decided.message;
    EXPECT_TRUE(Runs());
  }
}

// In another pid namespace the numbers are other processes', or nobody's: taken for ours, the
// process would count as gone and stay stopped for ever.
TEST_F(ResolveTest, NumbersOfAnotherPidNamespaceAreLeftAlone) {
  DieCommitting("127.0.0.1:1", *kernel::OwnPidNamespace() + 1);
  ASSERT_TRUE(Eventually([&] { return kernel::ReadStat(process_)->state == 'T'; }));
  for (const auto& decision : {std::optional<PersonsDecision>(),
                               std::optional<PersonsDecision>(PersonsDecision::kEndHere)}) {
    const ResolvedProcess resolved = ResolveIt(decision);
    EXPECT_EQ(resolved.result, ResolvedProcess::Result::kFailed);
    EXPECT_THAT(resolved.message, HasSubstr("pid namespace"));
    EXPECT_EQ(kernel::ReadStat(process_)->state, 'T');
  }
  // The entry is still there.
  EXPECT_EQ(Journal::Open(directory_.File("source"))->List()->entries.size(), 1u);
}

TEST_F(ResolveTest, WhatIsWrongWithOneEntryKeepsNoOtherFromBeingSettled) {
  ASSERT_TRUE(Journal::Open(directory_.File("source")).ok());
  // Listed in no particular order: some of them come before the good one.
  for (int i = 0; i < 8; ++i) {
    std::ofstream(directory_.File(absl::StrCat("source/damaged", i, ".json"))) << "{";
  }
  DieCommitting("127.0.0.1:1");
  ResolveOptions options;
  options.state_directory = directory_.path();
  options.connect_timeout = absl::Seconds(1);
  auto resolution = Resolve(options);
  ASSERT_TRUE(resolution.ok()) << resolution.status();
  EXPECT_EQ(resolution->unreadable.size(), 8u);
  ASSERT_EQ(resolution->processes.size(), 1u);
  EXPECT_EQ(resolution->processes[0].result, ResolvedProcess::Result::kUndecided);
  EXPECT_EQ(ResolveIt(PersonsDecision::kResumeHere).result, ResolvedProcess::Result::kResumed);
  EXPECT_TRUE(Runs());
}

TEST_F(ResolveTest, ProcessIsResumedRightAfterItsEngineDied) {
  for (int i = 0; i < 100; ++i) {
    DieCommitting("127.0.0.1:1");
    const ResolvedProcess resolved = ResolveIt(PersonsDecision::kResumeHere);
    ASSERT_EQ(resolved.result, ResolvedProcess::Result::kResumed) << resolved.message;
    ASSERT_TRUE(Runs()) << i;
  }
}

}  // namespace
}  // namespace predump
