#include "src/predump/journal.h"

#include <stdlib.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace predump {
namespace {

using ::testing::HasSubstr;

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
    entry.process = {4711, 123456789, "b", 0};
    entry.command = "odd \xff \"name\"";
    entry.target = "[::1]:7000";
    entry.target_boot_id = "t";
    entry.engine = {99, 7, "b", 0};
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
  EXPECT_TRUE(entries->empty()) << "prepared does not count";
  ASSERT_TRUE(journal->Commit(Entry()).ok());
  entries = journal->List();
  ASSERT_TRUE(entries.ok()) << entries.status();
  ASSERT_EQ(entries->size(), 1u);
  EXPECT_EQ(entries->front().session_id, Entry().session_id);
  EXPECT_EQ(entries->front().process.pid, 4711);
  EXPECT_EQ(entries->front().process.start_time_ticks, 123456789u);
  EXPECT_EQ(entries->front().target, "[::1]:7000");
  EXPECT_EQ(entries->front().target_boot_id, "t");
  ASSERT_TRUE(journal->Remove(Entry()).ok());
  entries = journal->List();
  ASSERT_TRUE(entries.ok());
  EXPECT_TRUE(entries->empty());
  EXPECT_TRUE(journal->Remove(Entry()).ok()) << "removing twice is no error";
}

TEST_F(JournalTest, WhatWasOnlyPreparedIsDiscarded) {
  const auto journal = Journal::Open(directory_ + "/source");
  ASSERT_TRUE(journal.ok());
  ASSERT_TRUE(journal->Prepare(Entry()).ok());
  EXPECT_EQ(journal->ListPrepared()->size(), 1u);
  journal->Discard(Entry());
  EXPECT_TRUE(std::filesystem::is_empty(directory_ + "/source"));
  EXPECT_FALSE(journal->Commit(Entry()).ok());
}

TEST_F(JournalTest, ABrokenEntryIsNamedNotSkipped) {
  const auto journal = Journal::Open(directory_ + "/source");
  ASSERT_TRUE(journal.ok());
  for (const char* text : {"", "{", "[]", "{\"version\": 2}", "{\"version\": 1, \"session\": 3}"}) {
    std::ofstream(directory_ + "/source/aa.json") << text;
    const auto entries = journal->List();
    ASSERT_FALSE(entries.ok()) << text;
    EXPECT_THAT(std::string(entries.status().message()), HasSubstr("aa.json"));
  }
}

TEST_F(JournalTest, ADirectoryOthersMayWriteToIsRefused) {
  const std::string path = directory_ + "/open";
  ASSERT_EQ(::mkdir(path.c_str(), 0700), 0);
  ASSERT_EQ(::chmod(path.c_str(), 0777), 0);
  EXPECT_EQ(Journal::Open(path).status().code(), absl::StatusCode::kPermissionDenied);
}

}  // namespace
}  // namespace predump
