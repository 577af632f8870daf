#include "src/images/image_set.h"

#include "gtest/gtest.h"
#include "tests/images/valid_state.h"

namespace predump::images {
namespace {

TEST(StateBuilder, NumbersFilesFromOneAndKeepsBodyIdsInStep) {
  const proto::ProcessState state = testing::ValidState();
  ASSERT_EQ(state.files_size(), 3);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(state.files(i).id(), static_cast<uint32_t>(i) + 1);
    EXPECT_EQ(BodyId(state.files(i)), state.files(i).id());
  }
}

TEST(StateBuilder, GivesADescriptorTheTypeOfItsFile) {
  const proto::ProcessState state = testing::ValidState();
  ASSERT_EQ(state.descriptors_size(), 1);
  EXPECT_EQ(state.descriptors(0).type(), criu::PIPE);
  EXPECT_EQ(state.descriptors(0).flags(), 1u);
}

TEST(StateBuilder, MakesOneExtraPerFile) {
  proto::ProcessState state;
  StateBuilder builder(state);
  criu::file_entry file;
  file.set_type(criu::EVENTFD);
  file.mutable_efd()->set_counter(1);
  const uint32_t id = builder.AddFile(file);
  builder.Extra(id).set_inode(5);
  builder.Extra(id).set_device(6);
  ASSERT_EQ(state.file_extras_size(), 1);
  EXPECT_EQ(state.file_extras(0).inode(), 5u);
  EXPECT_EQ(state.file_extras(0).device(), 6u);
}

TEST(FileIndex, FindsFilesByIdAndByDescriptor) {
  const proto::ProcessState state = testing::ValidState();
  const FileIndex index(state);
  EXPECT_EQ(index.Find(2), &state.files(1));
  EXPECT_EQ(index.Find(9), nullptr);
  EXPECT_EQ(index.FindByDescriptor(3), &state.files(2));
  EXPECT_EQ(index.FindByDescriptor(4), nullptr);
  EXPECT_EQ(index.FindExtra(3), &state.file_extras(0));
  EXPECT_EQ(index.FindExtra(1), nullptr);
  EXPECT_NE(index.FindRegular(1), nullptr);
  EXPECT_EQ(index.FindRegular(3), nullptr);
}

TEST(BodyId, IsAbsentWithoutTheRightBody) {
  criu::file_entry file;
  file.set_type(criu::PIPE);
  EXPECT_EQ(BodyId(file), std::nullopt);
  file.mutable_efd()->set_id(1);
  EXPECT_EQ(BodyId(file), std::nullopt);
  file.mutable_pipe()->set_id(1);
  EXPECT_EQ(BodyId(file), std::nullopt);
  file.clear_efd();
  EXPECT_EQ(BodyId(file), 1u);
}

}  // namespace
}  // namespace predump::images
