#include "src/predump/journal.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace predump {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class JournalTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "predump-journal-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  JournalEntry Entry() const {
    JournalEntry entry;
    entry.session_id = std::string("\x00\x01\xfe\xff", 4) + std::string(12, 'x');
    entry.process = {4711, 123456789, "b", 4026531836};
    entry.command = "odd \xff \"name\"";
    entry.target = "[::1]:7000";
    entry.remote_predump = "sudo -n predump";
    entry.remote_options = "--new-pidns";
    entry.target_boot_id = "t";
    entry.engine = {99, 7, "b", 4026531836};
    return entry;
  }

  std::string directory_;
};

TEST_F(JournalTest, WhatIsCommittedIsListedUntilRemoved) {
  const auto journal = Journal::Open(directory_ + "/source");
  ASSERT_TRUE(journal.ok()) << journal.status();
  ASSERT_TRUE(journal->Prepare(Entry()).ok());
  auto entries = journal->List();
  ASSERT_TRUE(entries.ok()) << entries.status();
  EXPECT_TRUE(entries->entries.empty()) << "prepared does not count";
  ASSERT_TRUE(journal->Commit(Entry()).ok());
  entries = journal->List();
  ASSERT_TRUE(entries.ok()) << entries.status();
  ASSERT_EQ(entries->entries.size(), 1u);
  EXPECT_EQ(entries->entries.front().session_id, Entry().session_id);
  EXPECT_EQ(entries->entries.front().process.pid, 4711);
  EXPECT_EQ(entries->entries.front().process.start_time_ticks, 123456789u);
  EXPECT_EQ(entries->entries.front().process.pid_namespace, 4026531836u);
  EXPECT_EQ(entries->entries.front().engine.pid, 99);
  EXPECT_EQ(entries->entries.front().engine.pid_namespace, 4026531836u);
  EXPECT_EQ(entries->entries.front().target, "[::1]:7000");
  EXPECT_EQ(entries->entries.front().remote_predump, "sudo -n predump");
  EXPECT_EQ(entries->entries.front().remote_options, "--new-pidns");
  EXPECT_EQ(entries->entries.front().target_boot_id, "t");
  ASSERT_TRUE(journal->Remove(Entry()).ok());
  entries = journal->List();
  ASSERT_TRUE(entries.ok());
  EXPECT_TRUE(entries->entries.empty());
  EXPECT_TRUE(journal->Remove(Entry()).ok()) << "removing twice is no error";
}

TEST_F(JournalTest, WhatWasOnlyPreparedIsDiscarded) {
  const auto journal = Journal::Open(directory_ + "/source");
  ASSERT_TRUE(journal.ok());
  ASSERT_TRUE(journal->Prepare(Entry()).ok());
  EXPECT_EQ(journal->ListPrepared()->entries.size(), 1u);
  journal->Discard(Entry());
  EXPECT_TRUE(std::filesystem::is_empty(directory_ + "/source"));
  EXPECT_FALSE(journal->Commit(Entry()).ok());
}

TEST_F(JournalTest, ABrokenEntryIsNamedAndHidesNoOther) {
  const auto journal = Journal::Open(directory_ + "/source");
  ASSERT_TRUE(journal.ok());
  ASSERT_TRUE(journal->Prepare(Entry()).ok());
  ASSERT_TRUE(journal->Commit(Entry()).ok());
  for (const char* text : {"", "{", "[]", "{\"version\": 2}", "{\"version\": \"1\"}",
                           "{\"version\": 1, \"session\": 3}"}) {
    std::ofstream(directory_ + "/source/aa.json") << text;
    const auto listing = journal->List();
    ASSERT_TRUE(listing.ok()) << text << listing.status();
    EXPECT_EQ(listing->entries.size(), 1u) << text;
    ASSERT_EQ(listing->unreadable.size(), 1u) << text;
    EXPECT_THAT(listing->unreadable.front(), HasSubstr("aa.json"));
  }
}

class UnsettledTest : public JournalTest {
 protected:
  // The reasons against another handover of this very process, with that entry on record.
  std::vector<std::string> Reasons(const JournalEntry& entry) {
    const auto journal = Journal::Open(directory_ + "/source");
    EXPECT_TRUE(journal.ok() && journal->Prepare(entry).ok() && journal->Commit(entry).ok());
    const auto reasons = Journal::FindUnsettled(directory_ + "/source", self_);
    EXPECT_TRUE(reasons.ok()) << reasons.status();
    return reasons.value_or(std::vector<std::string>());
  }
  JournalEntry OwnEntry() {
    JournalEntry entry = Entry();
    entry.process = *kernel::ProcessIdentity::Of(self_);
    return entry;
  }

  const kernel::ProcessHandle self_ = *kernel::ProcessHandle::Open(::getpid());
};

TEST_F(UnsettledTest, ItsOwnEntryStandsAgainstIt) {
  EXPECT_THAT(Reasons(OwnEntry()), ElementsAre(HasSubstr("predump resolve")));
}

TEST_F(UnsettledTest, AnotherProcessesEntryDoesNot) {
  EXPECT_THAT(Reasons(Entry()), IsEmpty());
  JournalEntry entry = OwnEntry();
  ++entry.process.start_time_ticks;
  EXPECT_THAT(Reasons(entry), IsEmpty());
}

TEST_F(UnsettledTest, UnderANumberOfAnotherPidNamespaceItMayBeTheSame) {
  JournalEntry entry = OwnEntry();
  ++entry.process.pid_namespace;
  entry.process.pid = 1;
  EXPECT_THAT(Reasons(entry), ElementsAre(HasSubstr("--pid 1")));
}

TEST_F(UnsettledTest, AnEntryThatCannotBeReadMaySpeakOfAnyProcess) {
  ASSERT_TRUE(Journal::Open(directory_ + "/source").ok());
  std::ofstream(directory_ + "/source/aa.json") << "{";
  EXPECT_THAT(Reasons(Entry()), ElementsAre(HasSubstr("aa.json")));
}

TEST_F(JournalTest, ADirectoryOthersMayWriteToIsRefused) {
  const std::string path = directory_ + "/open";
  ASSERT_EQ(::mkdir(path.c_str(), 0700), 0);
  ASSERT_EQ(::chmod(path.c_str(), 0777), 0);
  EXPECT_EQ(Journal::Open(path).status().code(), absl::StatusCode::kPermissionDenied);
}

}  // namespace
}  // namespace predump
