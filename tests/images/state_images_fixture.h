// An image directory with a state in it, and what a person with `crit` does to it.
#ifndef PREDUMP_TESTS_IMAGES_STATE_IMAGES_FIXTURE_H_
#define PREDUMP_TESTS_IMAGES_STATE_IMAGES_FIXTURE_H_

#include <fcntl.h>
#include <unistd.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "proto/state.pb.h"
#include "proto/stored.pb.h"
#include "src/base/unique_fd.h"
#include "src/images/image_constants.h"
#include "src/images/image_file.h"
#include "src/images/state_images.h"
#include "tests/support/temp_dir.h"

namespace predump::images {

inline constexpr uint32_t kPid = 4321;  // of RichState
inline constexpr uint32_t kSecond = 4322;

class StateImages : public ::testing::Test {
 protected:
  void SetUp() override {
    auto made = test_support::TempDir::Create();
    ASSERT_TRUE(made.ok()) << made.status();
    directory_.emplace(*std::move(made));
    fd_ = base::UniqueFd(::open(directory_->path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    ASSERT_TRUE(fd_.valid());
  }

  void Write(const proto::ProcessState& state, proto::StoredExtra extra = {}) {
    extra.set_version(kExtraVersion);
    const absl::Status written = WriteState(fd_.get(), state, std::move(extra));
    ASSERT_TRUE(written.ok()) << written;
  }

  StoredState Read() {
    auto stored = ReadState(fd_.get());
    EXPECT_TRUE(stored.ok()) << stored.status();
    return stored.ok() ? *std::move(stored) : StoredState();
  }

  std::string Failure() {
    const auto stored = ReadState(fd_.get());
    EXPECT_FALSE(stored.ok());
    return std::string(stored.status().message());
  }

  void Remove(const std::string& name) {
    ASSERT_EQ(::unlinkat(fd_.get(), name.c_str(), 0), 0) << name;
  }

  // As `crit` would: decodes the only entry, changes it, encodes it again.
  template <typename Message>
  void Edit(const std::string& name, ImageMagic magic,
            const std::function<void(Message&)>& change) {
    Message message;
    {
      auto image = ImageReader::Open(fd_.get(), name, magic);
      ASSERT_TRUE(image.ok()) << image.status();
      ASSERT_TRUE(image->Single(message).ok());
    }
    change(message);
    Replace(name, magic, message);
  }

  template <typename Message>
  void Replace(const std::string& name, ImageMagic magic, const Message& message) {
    auto image = ImageWriter::Create(fd_.get(), name, magic);
    ASSERT_TRUE(image.ok()) << image.status();
    ASSERT_TRUE(image->Add(message).ok());
    ASSERT_TRUE(image->Finish().ok());
  }

  std::vector<std::string> Blockers() {
    std::vector<std::string> texts;
    for (const auto& blocker : Read().blockers) {
      texts.push_back(absl::StrCat(blocker.what(), ": ", blocker.reason()));
    }
    return texts;
  }

  std::optional<test_support::TempDir> directory_;
  base::UniqueFd fd_;
};

}  // namespace predump::images

#endif  // PREDUMP_TESTS_IMAGES_STATE_IMAGES_FIXTURE_H_
