// Rounds of native sessions into a store: what is there, and what is refused.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/criu_inventory.pb.h"
#include "src/base/clock.h"
#include "src/images/image_constants.h"
#include "src/images/image_file.h"
#include "src/images/image_store.h"
#include "tests/pageserver/image_session_fixture.h"

namespace predump::pageserver {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST_F(ImageSessionTest, SaysInItsHelloThatItStoresImages) {
  FakeSource source(server_->address());
  EXPECT_TRUE(source.hello().host().stores_images());
}

TEST_F(ImageSessionTest, EachRoundIsADirectoryThatBuildsOnTheOneBefore) {
  FakeSource source(server_->address());
  Open(source, /*rounds_only=*/true);
  Map(source, At(0, 8));
  Pages(source, {At(0, 4)}, 'a');
  ASSERT_TRUE(EndRound(source, 0).ok());
  // Acknowledged is what has its name.
  EXPECT_EQ(Entries("1"), "0+4:4");
  EXPECT_EQ(Letters("latest"), "aaaa....");
  Pages(source, {At(1, 1), At(6, 2)}, 'b');
  ASSERT_TRUE(EndRound(source, 1).ok());
  EXPECT_EQ(Entries("2"), "0+1:1 1+1:4 2+2:1 6+2:4");
  EXPECT_EQ(Letters("latest"), "abaa..bb");
  ASSERT_TRUE(EndRound(source, 2).ok()) << "a round without a page";
  EXPECT_EQ(Entries("3"), "0+4:1 6+2:1");
  EXPECT_EQ(Letters("latest"), "abaa..bb");
  ASSERT_TRUE(source.control().Send(proto::CONTROL_DONE, proto::Done(), Soon()).ok());
  server_->WaitForSessions(0);
  EXPECT_THAT(Names(), ElementsAre("1", "2", "3", "latest"));
  EXPECT_FALSE(images::OpenParent(OpenNumber("1").get()).ok());
}

// What is acknowledged a source never sends again.
TEST_F(ImageSessionTest, ARoundThatCannotGetItsNameIsNotAcknowledged) {
  FakeSource source(server_->address());
  Open(source, /*rounds_only=*/true);
  Map(source, At(0, 4));
  Pages(source, {At(0, 4)}, 'a');
  ASSERT_TRUE(EndRound(source, 0).ok());
  ASSERT_TRUE(std::filesystem::create_directory(absl::StrCat(StorePath(), "/2")));
  Pages(source, {At(0, 4)}, 'b');
  EXPECT_THAT(std::string(EndRound(source, 1).message()), HasSubstr("File exists"));
  EXPECT_THAT(std::string(source.ExpectFailed().message()), HasSubstr("/2: File exists"));
  server_->WaitForSessions(0);
  EXPECT_THAT(Names(), ElementsAre("1", "2", "latest"));
  EXPECT_EQ(Letters("latest"), "aaaa....");
}

TEST_F(ImageSessionTest, WhatIsDroppedUnmappedOrMappedAnewIsNotTakenFromParents) {
  FakeSource source(server_->address());
  Open(source, /*rounds_only=*/true);
  Map(source, At(0, 8));
  Pages(source, {At(0, 8)}, 'a');
  ASSERT_TRUE(EndRound(source, 0).ok());
  ASSERT_TRUE(source.data().Drop(std::vector<WireExtent>{At(0, 1), At(7, 1)}).ok());
  ASSERT_TRUE(source.data().Unmap(std::vector<WireExtent>{At(2, 1)}).ok());
  Map(source, At(4, 2));
  Pages(source, {At(5, 1)}, 'b');
  ASSERT_TRUE(EndRound(source, 1).ok());
  EXPECT_EQ(Letters("2"), ".a.a.ba.");
  // Within one round too: what came and was dropped again never came.
  Pages(source, {At(0, 2), At(5, 1)}, 'c');
  ASSERT_TRUE(source.data().Drop(std::vector<WireExtent>{At(1, 1), At(5, 1)}).ok());
  Pages(source, {At(2, 1)}, 'd');
  Pages(source, {At(0, 1)}, 'e');
  ASSERT_TRUE(EndRound(source, 2).ok());
  EXPECT_EQ(Entries("3"), "0+1:4 2+1:4 3+1:1 6+1:1");
  EXPECT_EQ(Letters("3"), "e.da..a.");
}

TEST_F(ImageSessionTest, TheInventoryOfARoundSaysHowLongTheSourcesHostWasUp) {
  FakeSource source(server_->address());
  const uint64_t before_us = static_cast<uint64_t>(base::ClockNanoseconds(CLOCK_BOOTTIME)) / 1000;
  Open(source, /*rounds_only=*/true);
  Map(source, At(0, 1));
  Pages(source, {At(0, 1)}, 'a');
  ASSERT_TRUE(EndRound(source, 0).ok());
  const uint64_t after_us = static_cast<uint64_t>(base::ClockNanoseconds(CLOCK_BOOTTIME)) / 1000;
  const base::UniqueFd fd = OpenNumber("1");
  auto reader =
      images::ImageReader::Open(fd.get(), "inventory.img", images::ImageMagic::kInventory);
  ASSERT_TRUE(reader.ok()) << reader.status();
  criu::inventory_entry inventory;
  ASSERT_TRUE(reader->Single(inventory).ok());
  // The clock of its hello was read before we looked, by no more than the way takes.
  EXPECT_GE(inventory.dump_uptime(), before_us - 1'000'000);
  EXPECT_LE(inventory.dump_uptime(), after_us);
}

TEST_F(ImageSessionTest, ASourceThatVanishesWithinAFrameLeavesItsRounds) {
  FakeSource source(server_->address());
  Open(source, /*rounds_only=*/true);
  Map(source, At(0, 4));
  Pages(source, {At(0, 4)}, 'a');
  ASSERT_TRUE(EndRound(source, 0).ok());
  ASSERT_TRUE(source.data().PagesHeader(std::vector<WireExtent>{At(0, 4)}).ok());
  ASSERT_EQ(::write(source.data().fd(), "half", 4), 4);
  source.Vanish();
  ExpectOnlyTheFirstRound(source.session_id());
}

TEST_F(ImageSessionTest, AnAbsurdFrameIsRefusedInWords) {
  FakeSource source(server_->address());
  Open(source, /*rounds_only=*/false);
  Map(source, At(0, 4));
  Pages(source, {At(0, 4)}, 'a');
  ASSERT_TRUE(EndRound(source, 0).ok());
  transport::DataHeader header = {};
  header.kind = static_cast<uint32_t>(transport::DataKind::kPages);
  header.count = 0xffffffff;
  header.arg = kPage;
  ASSERT_EQ(::write(source.data().fd(), &header, sizeof header), 32);
  EXPECT_THAT(std::string(source.ExpectFailed().message()), HasSubstr("count out of bounds"));
  // On its own connection too: a source that sends hears no words.
  EXPECT_FALSE(source.data().ReadAcknowledge(1, Soon()).ok());
  ExpectOnlyTheFirstRound(source.session_id());
}

TEST_F(ImageSessionTest, ServerKilledBetweenRoundsLeavesWhatWasAcknowledged) {
  FakeSource source(server_->address());
  Open(source, /*rounds_only=*/true);
  Map(source, At(0, 4));
  Pages(source, {At(0, 4)}, 'a');
  ASSERT_TRUE(EndRound(source, 0).ok());
  Pages(source, {At(0, 1)}, 'b');
  const pid_t session = server_->WaitForSessions(1).front();
  server_->Signal(SIGKILL);
  ASSERT_EQ(::kill(session, SIGKILL), 0);
  server_->Wait();
  ASSERT_TRUE(WaitForProcess(session, false));
  EXPECT_FALSE(EndRound(source, 1).ok());
  EXPECT_EQ(Letters("latest"), "aaaa....");
  // The next server removes what was left, and goes on counting.
  server_ = ServerProcess::Start(Options());
  EXPECT_THAT(Names(), ElementsAre("1", "latest"));
  FakeSource next(server_->address());
  Open(next, /*rounds_only=*/true);
  Map(next, At(0, 1));
  Pages(next, {At(0, 1)}, 'c');
  ASSERT_TRUE(EndRound(next, 0).ok());
  EXPECT_EQ(Entries("2"), "0+1:4") << "a session's first directory stands alone";
}

TEST_F(ImageSessionTest, OneWriterAtATimeAlsoBetweenRounds) {
  FakeSource source(server_->address());
  Open(source, /*rounds_only=*/true);
  Map(source, At(0, 1));
  for (const uint64_t round : {0, 1}) {
    Pages(source, {At(0, 1)}, 'a');
    ASSERT_TRUE(EndRound(source, round).ok());
    FakeSource other(server_->address());
    const absl::StatusOr<proto::BeginReply> reply = other.Begin(other.MakeBegin(pid_));
    ASSERT_TRUE(reply.ok()) << reply.status();
    ASSERT_EQ(reply->blockers_size(), 1);
    EXPECT_THAT(reply->blockers(0).what(), HasSubstr(StorePath()));
    EXPECT_THAT(reply->blockers(0).reason(), HasSubstr("somebody else is writing"));
  }
  source.Vanish();
  server_->WaitForSessions(0);
  FakeSource other(server_->address());
  EXPECT_EQ(other.Begin(other.MakeBegin(pid_))->blockers_size(), 0);
}

TEST_F(ImageSessionTest, AskingAloneLeavesNothing) {
  FakeSource source(server_->address());
  proto::Begin begin = source.MakeBegin(pid_);
  begin.set_check_only(true);
  const absl::StatusOr<proto::BeginReply> reply = source.Begin(begin);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->blockers_size(), 0);
  EXPECT_FALSE(reply->has_data_token());
  server_->WaitForSessions(0);
  EXPECT_THAT(Names(), IsEmpty());
}

TEST_F(ImageSessionTest, PingsAreAnsweredWhilePagesAreAwaited) {
  FakeSource source(server_->address());
  Open(source, /*rounds_only=*/true);
  Map(source, At(0, 4));
  ASSERT_TRUE(source.data().PagesHeader(std::vector<WireExtent>{At(0, 4)}).ok());
  ASSERT_EQ(::write(source.data().fd(), "half", 4), 4);
  proto::Ping ping;
  ping.set_sender_monotonic_ns(42);
  ASSERT_TRUE(source.control().Send(proto::CONTROL_PING, ping, Soon()).ok());
  const auto pong = source.control().Expect<proto::Pong>(proto::CONTROL_PONG, Soon());
  ASSERT_TRUE(pong.ok()) << pong.status();
  EXPECT_EQ(pong->sender_monotonic_ns(), 42);
}

TEST_F(ImageSessionTest, ADirectoryThatIsSomethingElseIsNoStore) {
  ServerOptions options = Options();
  options.images_directory = directory_.File("other");
  ASSERT_TRUE(std::filesystem::create_directories(options.images_directory + "/thesis"));
  const absl::StatusOr<int> result = RunServer(options, [](const std::string&) {});
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("thesis"));
}

// A small disk of its own, seen by this test only.
class SmallDiskTest : public ImageSessionTest {
 protected:
  void SetUp() override {
    if (::unshare(CLONE_NEWNS) != 0) GTEST_SKIP() << "mounting needs root";
    ASSERT_EQ(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
    store_path_ = directory_.File("disk");
    ASSERT_TRUE(std::filesystem::create_directory(store_path_));
    ASSERT_EQ(::mount("predump-test", store_path_.c_str(), "tmpfs", 0, "size=256k"), 0);
    server_ = ServerProcess::Start(Options());
  }
  void TearDown() override {
    server_.reset();
    ::umount2(store_path_.c_str(), MNT_DETACH);
  }
};

TEST_F(SmallDiskTest, AFullDiskIsSaidAndKeepsWhatWasWhole) {
  FakeSource source(server_->address());
  Open(source, /*rounds_only=*/false);
  Map(source, At(0, 256));
  Pages(source, {At(0, 4)}, 'a');
  ASSERT_TRUE(EndRound(source, 0).ok());
  ASSERT_TRUE(source.data().PagesHeader(std::vector<WireExtent>{At(0, 100)}).ok());
  // Not all of it need find a reader.
  const std::string content(100 * kPage, 'b');
  ::send(source.data().fd(), content.data(), content.size(), MSG_NOSIGNAL);
  const absl::Status acknowledged = EndRound(source, 1);
  EXPECT_THAT(std::string(acknowledged.message()), HasSubstr("No space left on device"));
  EXPECT_THAT(std::string(source.ExpectFailed().message()),
              ::testing::AllOf(HasSubstr("No space left on device"), HasSubstr("pages-1.img")));
  ExpectOnlyTheFirstRound(source.session_id());
}

TEST_F(SmallDiskTest, AReadOnlyDiskStopsTheServerAtItsStart) {
  ASSERT_EQ(::mount(nullptr, store_path_.c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr), 0);
  const absl::StatusOr<int> result = RunServer(Options(), [](const std::string&) {});
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("Read-only file system"));
  // And a session, where it became so later.
  FakeSource source(server_->address());
  const absl::StatusOr<proto::BeginReply> reply = source.Begin(source.MakeBegin(pid_));
  ASSERT_TRUE(reply.ok()) << reply.status();
  ASSERT_EQ(reply->blockers_size(), 1);
  EXPECT_THAT(reply->blockers(0).reason(), HasSubstr("Read-only file system"));
}

}  // namespace
}  // namespace predump::pageserver
