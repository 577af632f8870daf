// What a restore from a store would give, against what the source says it has.
#include "src/pageserver/verification.h"

#include <sys/mman.h>

#include <fstream>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "src/images/image_constants.h"
#include "tests/images/stored_pages.h"
#include "tests/support/temp_dir.h"

namespace predump::pageserver {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kStart = 0x10000000;  // of a private mapping of 4 pages of a file

class VerificationTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto directory = test_support::TempDir::Create();
    ASSERT_TRUE(directory.ok()) << directory.status();
    directory_.emplace(*std::move(directory));
    std::ofstream file(directory_->File("mapped"), std::ios::binary);
    for (const char letter : std::string("wxyz")) file << std::string(kPage, letter);
    file.close();
    ASSERT_TRUE(file.good());

    criu::vma_entry& vma = *state_.mutable_mm()->add_vmas();
    vma.set_start(kStart);
    vma.set_end(kStart + 3 * kPage);
    vma.set_pgoff(kPage);
    vma.set_shmid(1);
    vma.set_prot(PROT_READ | PROT_WRITE);
    vma.set_flags(MAP_PRIVATE);
    vma.set_status(images::kVmaRegular | images::kVmaFilePrivate);
    criu::file_entry& entry = *state_.add_files();
    entry.set_type(criu::REG);
    entry.set_id(1);
    entry.mutable_reg()->set_id(1);
    entry.mutable_reg()->set_name(directory_->File("mapped"));
  }

  // Of a store with a page of its own at page `stored`, filled with `mark`, where the source lists
  // these pages.
  proto::VerifyReply Compare(uint64_t stored, unsigned mark,
                             const std::vector<std::pair<uint64_t, char>>& listed) {
    const base::UniqueFd images = images::testing::MakeImages(
        directory_->File("images"), {{kStart + stored * kPage, 1, images::kPagePresent}}, mark);
    const auto chain = images::PageChain::Open(images.get(), images::testing::kTask);
    EXPECT_TRUE(chain.ok()) << chain.status();
    proto::Verify verify;
    for (const auto& [page, letter] : listed) {
      proto::VerifyRange* range = verify.add_ranges();
      range->set_start(kStart + page * kPage);
      range->add_page_hashes(
          pagemap::HashPage(std::vector<std::byte>(kPage, static_cast<std::byte>(letter))));
    }
    verify.set_last(true);
    Verification verification(state_);
    EXPECT_TRUE(verification.Add(verify).ok());
    const auto reply = verification.Compare(*chain);
    EXPECT_TRUE(reply.ok()) << reply.status();
    return *reply;
  }

  std::optional<test_support::TempDir> directory_;
  proto::ProcessState state_;
};

TEST_F(VerificationTest, WhatIsNotStoredOfAMappedFileIsTheFiles) {
  const char own = static_cast<char>(images::testing::MarkOf('a', 0));
  // Page 0 of the mapping is page 1 of the file.
  EXPECT_EQ(Compare(1, 'a', {{0, 'x'}, {1, own}}).pages_differing(), 0u);
  EXPECT_EQ(Compare(1, 'a', {{0, 'w'}, {1, own}}).pages_differing(), 1u);
  EXPECT_EQ(Compare(1, 'a', {{0, 'x'}, {1, own}}).pages_compared(), 2u);
}

TEST_F(VerificationTest, APageThatOnlyTheStoreHasMustBeTheFiles) {
  EXPECT_EQ(Compare(1, 'a', {{0, 'x'}}).pages_differing(), 1u);
  std::ofstream(directory_->File("mapped"), std::ios::binary)
      << std::string(4 * kPage, static_cast<char>(images::testing::MarkOf('a', 0)));
  EXPECT_EQ(Compare(1, 'a', {}).pages_differing(), 0u);
}

TEST_F(VerificationTest, AFileThatIsNotOnThisHostIsNotCompared) {
  state_.mutable_files(0)->mutable_reg()->set_name(directory_->File("elsewhere"));
  const proto::VerifyReply reply = Compare(1, 'a', {{0, 'x'}});
  EXPECT_EQ(reply.pages_differing(), 0u);
  EXPECT_EQ(reply.pages_compared(), 0u);
}

}  // namespace
}  // namespace predump::pageserver
