// Images of others: incomplete, damaged, newer, and with what is not restored.
#include <fcntl.h>
#include <unistd.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/unique_fd.h"
#include "src/images/directory_names.h"
#include "src/images/image_constants.h"
#include "src/images/image_file.h"
#include "src/images/image_set.h"
#include "src/images/state_images.h"
#include "tests/images/rich_state.h"
#include "tests/images/state_images_fixture.h"

namespace predump::images {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::IsSupersetOf;

TEST_F(StateImages, RoundsAloneAreNoProcess) {
  ASSERT_TRUE(WriteRoundInventory(fd_.get(), 123456789).ok());
  criu::inventory_entry inventory;
  auto image = ImageReader::Open(fd_.get(), "inventory.img", ImageMagic::kInventory);
  ASSERT_TRUE(image.ok() && image->Single(inventory).ok());
  EXPECT_EQ(inventory.img_version(), 0u);
  EXPECT_EQ(inventory.dump_uptime(), 123456789u);
  const auto stored = ReadState(fd_.get());
  EXPECT_TRUE(absl::IsNotFound(stored.status()));
  EXPECT_THAT(stored.status().message(), HasSubstr("rounds only"));
}

TEST_F(StateImages, TheInventoryOfRoundsSpoilsNothingElse) {
  EXPECT_TRUE(CheckTakesRoundInventory(fd_.get()).ok());
  ASSERT_TRUE(WriteRoundInventory(fd_.get(), 1).ok());
  EXPECT_TRUE(CheckTakesRoundInventory(fd_.get()).ok()) << "of an earlier round";
  const auto why_not = [this] {
    const absl::Status status = CheckTakesRoundInventory(fd_.get());
    EXPECT_FALSE(status.ok());
    return std::string(status.message());
  };
  for (const char* name : {".lock", "latest", "pstree.img"}) {
    const base::UniqueFd made(::openat(fd_.get(), name, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    EXPECT_THAT(why_not(), HasSubstr(absl::StrCat("holds ", name)));
    Remove(name);
  }
  Write(testing::RichState());
  EXPECT_THAT(why_not(), HasSubstr("holds pstree.img"));
  Remove("pstree.img");
  Remove(kExtraName);
  EXPECT_THAT(why_not(), HasSubstr("inventory of a whole dump"));
  ASSERT_EQ(::ftruncate(base::UniqueFd(::openat(fd_.get(), "inventory.img", O_RDWR)).get(), 6), 0);
  EXPECT_THAT(why_not(), HasSubstr("inventory.img"));
}

TEST_F(StateImages, ADirectoryWithPagesOnlySaysWhatIsMissing) {
  const base::UniqueFd made(::openat(fd_.get(), "pagemap-7.img", O_CREAT | O_WRONLY, 0644));
  const auto stored = ReadState(fd_.get());
  EXPECT_TRUE(absl::IsNotFound(stored.status()));
  EXPECT_THAT(stored.status().message(), HasSubstr("memory only"));
  Remove("pagemap-7.img");
  EXPECT_THAT(Failure(), HasSubstr("not a directory of images"));
}

TEST_F(StateImages, EachImageThatIsMissingIsNamed) {
  for (const char* name : {"pstree.img", "core-4321.img", "core-4322.img", "ids-4321.img",
                           "mm-4321.img", "fs-4321.img", "files.img"}) {
    Write(testing::RichState());
    Remove(name);
    const auto stored = ReadState(fd_.get());
    EXPECT_TRUE(absl::IsDataLoss(stored.status())) << name << ": " << stored.status();
    EXPECT_THAT(stored.status().message(), HasSubstr(name));
  }
}

// CRIU leaves some out where there is nothing to say; of a set of our own all must be there.
TEST_F(StateImages, EachImageOfOurOwnThatIsMissingIsNamed) {
  Write(testing::RichState());
  const auto names = ListNames(fd_.get());
  ASSERT_TRUE(names.ok()) << names.status();
  EXPECT_THAT(*names, IsSupersetOf({"fdinfo-2.img", "pipes-data.img", "timens-0.img"}));
  for (const std::string& name : *names) {
    if (name == kExtraName || name == "inventory.img") continue;
    Write(testing::RichState());
    Remove(name);
    EXPECT_THAT(Failure(), AllOf(HasSubstr(name), HasSubstr("missing")));
  }
}

TEST_F(StateImages, OtherFormatsAreRefused) {
  for (const uint32_t version : {1u, 3u}) {
    Write(testing::RichState());
    Edit<criu::inventory_entry>("inventory.img", ImageMagic::kInventory,
                                [&](auto& inventory) { inventory.set_img_version(version); });
    const auto stored = ReadState(fd_.get());
    EXPECT_TRUE(absl::IsUnimplemented(stored.status())) << stored.status();
    EXPECT_THAT(stored.status().message(), AllOf(HasSubstr(absl::StrCat("format ", version)),
                                                 HasSubstr(version == 1 ? "older" : "newer")));
  }
}

TEST_F(StateImages, ANewerExtraIsRefused) {
  Write(testing::RichState());
  Edit<proto::StoredExtra>(kExtraName, ImageMagic::kPredumpExtra,
                           [](auto& extra) { extra.set_version(kExtraVersion + 1); });
  EXPECT_THAT(Failure(), HasSubstr("newer predump"));
}

TEST_F(StateImages, AnExtraOfAnotherProcessIsRefused) {
  Write(testing::RichState());
  Edit<proto::StoredExtra>(kExtraName, ImageMagic::kPredumpExtra,
                           [](auto& extra) { extra.mutable_state()->set_pid(1); });
  EXPECT_THAT(Failure(), HasSubstr("belongs to process 1"));
}

TEST_F(StateImages, AThreadListedTwiceIsRefused) {
  Write(testing::RichState());
  Edit<criu::pstree_entry>("pstree.img", ImageMagic::kPstree,
                           [](auto& tree) { tree.add_threads(kSecond); });
  EXPECT_THAT(Failure(), HasSubstr("pstree.img lists thread 4322 twice"));
}

TEST_F(StateImages, TreesAndOtherArchitecturesAreRefused) {
  Write(testing::RichState());
  Edit<criu::core_entry>("core-4321.img", ImageMagic::kCore,
                         [](auto& core) { core.set_mtype(criu::core_entry::AARCH64); });
  EXPECT_THAT(Failure(), HasSubstr("architecture (AARCH64)"));

  Write(testing::RichState());
  auto image = ImageWriter::Create(fd_.get(), "pstree.img", ImageMagic::kPstree);
  ASSERT_TRUE(image.ok());
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(image->Add(testing::RichState().pstree()).ok());
  ASSERT_TRUE(image->Finish().ok());
  EXPECT_THAT(Failure(), HasSubstr("2 processes"));
}

TEST_F(StateImages, ForeignImagesAreNamedUnlessEmpty) {
  Write(testing::RichState());
  const auto put = [&](const std::string& name, const std::string& bytes) {
    const base::UniqueFd file(::openat(fd_.get(), name.c_str(), O_CREAT | O_WRONLY, 0644));
    ASSERT_EQ(::write(file.get(), bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  };
  put("ghost-file-1f.img", "xxxxxxxxmore");
  put("tcp-stream-2a.img", "xxxxxxxxmore");
  put("pagemap-shmem-9.img", "xxxxxxxxmore");
  put("strange.img", "xxxxxxxxmore");
  put("filelocks.img", "xxxxxxxx");
  put("stats-dump", "xxxxxxxxmore");
  put("cgroup.img", "xxxxxxxxmore");
  EXPECT_THAT(Blockers(),
              ::testing::ElementsAre(HasSubstr("ghost-file-1f.img: a file that was deleted"),
                                     HasSubstr("pagemap-shmem-9.img: shared memory"),
                                     HasSubstr("strange.img: an image that predump does not know"),
                                     HasSubstr("tcp-stream-2a.img: an established TCP")));
}

TEST_F(StateImages, ForeignEntriesAreNamed) {
  Write(testing::RichState());
  Edit<criu::core_entry>("core-4322.img", ImageMagic::kCore, [](auto& core) {
    core.mutable_thread_core()->set_seccomp_mode(criu::filter);
  });
  Edit<criu::core_entry>("core-4321.img", ImageMagic::kCore,
                         [](auto& core) { core.mutable_tc()->set_task_state(3); });
  Edit<criu::mm_entry>("mm-4321.img", ImageMagic::kMm,
                       [](auto& mm) { mm.mutable_vmas(1)->set_status(0x4081); });
  Edit<criu::task_kobj_ids_entry>("ids-4321.img", ImageMagic::kIds,
                                  [](auto& ids) { ids.set_net_ns_id(99); });
  EXPECT_THAT(Blockers(),
              ::testing::UnorderedElementsAre(
                  HasSubstr("thread 4322: seccomp"), HasSubstr("stopped by a signal"),
                  HasSubstr("shared anonymous memory"), HasSubstr("attribute network namespace")));
}

TEST_F(StateImages, EmptySlotsOfSegmentDescriptorsAreNone) {
  Write(testing::RichState());
  Edit<criu::core_entry>("core-4321.img", ImageMagic::kCore, [](auto& core) {
    for (const bool not_present : {false, true}) {
      criu::user_desc_t& slot = *core.mutable_thread_info()->add_tls();
      slot.set_entry_number(12);
      slot.set_base_addr(0);
      slot.set_limit(0);
      slot.set_seg_32bit(false);
      slot.set_contents_h(false);
      slot.set_contents_l(false);
      slot.set_read_exec_only(not_present);
      slot.set_limit_in_pages(false);
      slot.set_seg_not_present(not_present);
      slot.set_usable(false);
    }
  });
  EXPECT_THAT(Blockers(), IsEmpty());
  Edit<criu::core_entry>("core-4321.img", ImageMagic::kCore, [](auto& core) {
    core.mutable_thread_info()->mutable_tls(0)->set_base_addr(4096);
  });
  EXPECT_THAT(Blockers(), ::testing::ElementsAre(HasSubstr("segment descriptors")));
}

TEST_F(StateImages, ConnectionsOfATcpCloseDumpAreClosed) {
  proto::ProcessState state = testing::RichState();
  state.mutable_inventory()->set_tcp_close(true);
  uint32_t id = 0;
  for (auto& file : *state.mutable_files()) {
    if (!file.has_isk()) continue;
    file.mutable_isk()->set_state(kSocketEstablished);
    id = file.id();
  }
  Write(state);
  Remove(kExtraName);
  EXPECT_THAT(Blockers(), IsEmpty());
  const StoredState stored = Read();
  const proto::FileExtra* extra = FileIndex(stored.state).FindExtra(id);
  ASSERT_NE(extra, nullptr);
  EXPECT_TRUE(extra->tcp_closed());
}

TEST_F(StateImages, AnEntryThatPromisesMoreThanThereIsEndsTheReading) {
  Write(testing::RichState());
  criu::pipe_data_entry entry;
  entry.set_pipe_id(77);
  entry.set_bytes(0xffffffff);
  Replace("pipes-data.img", ImageMagic::kPipesData, entry);
  EXPECT_THAT(Failure(), HasSubstr("pipes-data.img"));
}

}  // namespace
}  // namespace predump::images
