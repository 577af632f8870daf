#include "src/images/image_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <string>
#include <utility>
#include <vector>

#include "proto/criu_files.pb.h"
#include "src/base/unique_fd.h"
#include "tests/support/temp_dir.h"

namespace predump::images {
namespace {

using ::testing::HasSubstr;

class ImageFileTest : public ::testing::Test {
 protected:
  // Entries with ids 0, 1, ..., each with so many bytes behind it.
  void Write(const std::vector<size_t>& sizes) {
    auto writer = ImageWriter::Create(fd_.get(), "pipes-data.img", ImageMagic::kPipesData);
    ASSERT_TRUE(writer.ok()) << writer.status();
    uint32_t id = 0;
    for (const size_t size : sizes) {
      criu::pipe_data_entry entry;
      entry.set_pipe_id(id++);
      entry.set_bytes(static_cast<uint32_t>(size));
      ASSERT_TRUE(writer->Add(entry).ok());
      ASSERT_TRUE(writer->AddRaw(std::string(size, static_cast<char>('a' + id))).ok());
    }
    ASSERT_TRUE(writer->Finish().ok());
  }
  ImageReader Open() {
    auto reader = ImageReader::Open(fd_.get(), "pipes-data.img", ImageMagic::kPipesData);
    EXPECT_TRUE(reader.ok()) << reader.status();
    return *std::move(reader);
  }

  test_support::TempDir directory_ = *test_support::TempDir::Create();
  base::UniqueFd fd_{::open(directory_.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
};

// Within what was read ahead, at its end, and beyond it.
TEST_F(ImageFileTest, DataCanBeSkippedWhateverWasReadAhead) {
  const std::vector<size_t> sizes = {10, 100'000, 0, 70'000, 1u << 20, 5};
  ASSERT_NO_FATAL_FAILURE(Write(sizes));
  for (unsigned skipped = 0; skipped < 1u << sizes.size(); ++skipped) {
    ImageReader reader = Open();
    for (size_t i = 0; i < sizes.size(); ++i) {
      criu::pipe_data_entry entry;
      const auto found = reader.Next(entry);
      ASSERT_TRUE(found.ok() && *found) << found.status();
      ASSERT_EQ(entry.pipe_id(), i);
      if ((skipped & (1u << i)) != 0) {
        ASSERT_TRUE(reader.SkipRaw(entry.bytes()).ok());
      } else {
        const auto raw = reader.Raw(entry.bytes());
        ASSERT_TRUE(raw.ok()) << raw.status();
        ASSERT_EQ(*raw, std::string(sizes[i], static_cast<char>('a' + i + 1)));
      }
    }
    criu::pipe_data_entry entry;
    EXPECT_FALSE(*reader.Next(entry));
  }
}

TEST_F(ImageFileTest, DataThatIsNotThereCannotBeSkipped) {
  ASSERT_NO_FATAL_FAILURE(Write({100}));
  ImageReader reader = Open();
  criu::pipe_data_entry entry;
  ASSERT_TRUE(*reader.Next(entry));
  EXPECT_THAT(std::string(reader.SkipRaw(101).message()), HasSubstr("ends within 101 bytes"));
  EXPECT_TRUE(reader.SkipRaw(100).ok());
}

}  // namespace
}  // namespace predump::images
