#include "tests/pageserver/image_session_fixture.h"

#include <gmock/gmock.h>
#include <poll.h>

#include <algorithm>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "src/images/image_constants.h"
#include "src/images/image_store.h"
#include "src/images/page_chain.h"

namespace predump::pageserver {
namespace {

// What only images need.
void AddInventory(proto::ProcessState& state) {
  criu::task_kobj_ids_entry& ids = *state.mutable_ids();
  for (const auto set :
       {&criu::task_kobj_ids_entry::set_vm_id, &criu::task_kobj_ids_entry::set_files_id,
        &criu::task_kobj_ids_entry::set_fs_id, &criu::task_kobj_ids_entry::set_sighand_id}) {
    (ids.*set)(1);
  }
  state.mutable_inventory()->set_img_version(images::kImageVersion);
  *state.mutable_inventory()->mutable_root_ids() = ids;
}

}  // namespace

ServerOptions ImageSessionTest::Options() const {
  ServerOptions options;
  options.listen = *transport::Address::Parse("127.0.0.1:0");
  options.state_directory = directory_.path();
  options.images_directory = StorePath();
  return options;
}

std::string ImageSessionTest::StorePath() const {
  return store_path_.empty() ? directory_.File("images") : store_path_;
}

void ImageSessionTest::Open(FakeSource& source, bool rounds_only) {
  proto::Begin begin = source.MakeBegin(pid_);
  begin.set_rounds_only(rounds_only);
  const absl::StatusOr<proto::BeginReply> reply = source.Begin(begin);
  ASSERT_TRUE(reply.ok()) << reply.status();
  ASSERT_EQ(reply->blockers_size(), 0) << reply->DebugString();
  source.OpenData(reply->data_token());
}

void ImageSessionTest::Map(FakeSource& source, const WireExtent& range) {
  transport::MapRecord map = {};
  map.start = range.start;
  map.bytes = range.bytes;
  map.prot = 3;
  ASSERT_TRUE(source.data().Map(map, "").ok());
}

void ImageSessionTest::Pages(FakeSource& source, const std::vector<WireExtent>& extents,
                             char letter) {
  ASSERT_TRUE(source.data().PagesHeader(extents).ok());
  uint64_t bytes = 0;
  for (const WireExtent& extent : extents) bytes += extent.bytes;
  const std::string content(bytes, letter);
  ASSERT_EQ(::write(source.data().fd(), content.data(), bytes), static_cast<ssize_t>(bytes));
}

absl::Status ImageSessionTest::EndRound(FakeSource& source, uint64_t round) {
  const absl::Status ended = source.data().EndRound(round);
  return ended.ok() ? source.data().ReadAcknowledge(round, Soon()) : ended;
}

absl::StatusOr<proto::Ready> ImageSessionTest::BringToReady(FakeSource& source) {
  Open(source, /*rounds_only=*/false);
  Map(source, At(0, 4));
  Pages(source, {At(0, 4)}, 'a');
  EXPECT_TRUE(EndRound(source, 0).ok());
  Pages(source, {At(1, 1)}, 'b');
  EXPECT_TRUE(source.data().Final(1).ok());
  return SendPrepare(source);
}

absl::StatusOr<proto::Ready> ImageSessionTest::SendPrepare(FakeSource& source) {
  proto::Prepare prepare;
  *prepare.mutable_state() = HandmadeState(pid_);
  AddInventory(*prepare.mutable_state());
  prepare.set_final_round(1);
  const absl::Status sent = source.control().Send(proto::CONTROL_PREPARE, prepare, Soon());
  if (!sent.ok()) return sent;
  return source.control().Expect<proto::Ready>(proto::CONTROL_READY, Soon());
}

absl::StatusOr<proto::Running> ImageSessionTest::Commit(FakeSource& source, proto::Commit commit) {
  if (!commit.has_session_id()) commit.set_session_id(source.session_id());
  const absl::Status sent = source.control().Send(proto::CONTROL_COMMIT, commit, Soon());
  if (!sent.ok()) return sent;
  return source.control().Expect<proto::Running>(proto::CONTROL_RUNNING, Soon());
}

proto::Fate ImageSessionTest::FinalFate(const std::string& session_id) {
  FakeSource asking(server_->address());
  for (int i = 0; i < 1000; ++i) {
    const absl::StatusOr<proto::Fate> fate = asking.AskFate(session_id);
    EXPECT_TRUE(fate.ok()) << fate.status();
    if (!fate.ok() || fate->outcome() != proto::Fate::PENDING) {
      return fate.ok() ? *fate : proto::Fate();
    }
    ::poll(nullptr, 0, 10);
  }
  ADD_FAILURE() << "the fate stays open";
  return proto::Fate();
}

std::vector<std::string> ImageSessionTest::Names() const {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(StorePath())) {
    if (entry.path().filename() != ".lock") names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

base::UniqueFd ImageSessionTest::OpenNumber(const std::string& number) const {
  auto fd = images::OpenImageDirectory(absl::StrCat(StorePath(), "/", number));
  EXPECT_TRUE(fd.ok()) << fd.status();
  return fd.ok() ? *std::move(fd) : base::UniqueFd();
}

std::string ImageSessionTest::Entries(const std::string& number) const {
  const base::UniqueFd fd = OpenNumber(number);
  const auto pagemap = images::ReadPagemap(fd.get(), Of());
  EXPECT_TRUE(pagemap.ok()) << pagemap.status();
  if (!pagemap.ok()) return "";
  std::vector<std::string> entries;
  for (const images::PagemapEntry& entry : pagemap->entries) {
    entries.push_back(
        absl::StrCat((entry.start - kCountingPage) / kPage, "+", entry.pages, ":", entry.flags));
  }
  return absl::StrJoin(entries, " ");
}

std::string ImageSessionTest::Letters(const std::string& number) const {
  const base::UniqueFd fd = OpenNumber(number);
  const auto chain = images::PageChain::Open(fd.get(), Of());
  EXPECT_TRUE(chain.ok()) << chain.status();
  std::string letters;
  for (uint64_t page = 0; chain.ok() && page < 8; ++page) {
    std::vector<std::byte> bytes(kPage);
    const uint64_t address = kCountingPage + page * kPage;
    if (chain->Find(address) == nullptr) {
      letters.push_back('.');
      continue;
    }
    EXPECT_TRUE(chain->Read(address, bytes).ok());
    EXPECT_EQ(bytes, std::vector<std::byte>(kPage, bytes[0]));
    letters.push_back(static_cast<char>(bytes[0]));
  }
  return letters;
}

void ImageSessionTest::ExpectOnlyTheFirstRound(const std::string& session_id) {
  EXPECT_EQ(FinalFate(session_id).outcome(), proto::Fate::DESTROYED);
  server_->WaitForSessions(0);
  EXPECT_THAT(Names(), ::testing::ElementsAre("1", "latest"));
  EXPECT_EQ(Letters("latest"), "aaaa....");
}

}  // namespace predump::pageserver
