#include "src/pageserver/pages_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "src/base/atomic_file.h"
#include "src/base/errors.h"
#include "src/transport/data_format.h"
#include "tests/support/temp_dir.h"

namespace predump::pageserver {
namespace {

using transport::WireExtent;

constexpr uint64_t kBase = 0x700000000000;
constexpr uint64_t kPage = 4096;

class PagesFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends_), 0);
    near_ = base::UniqueFd(ends_[0]);
    far_ = base::UniqueFd(ends_[1]);
    ASSERT_EQ(::fcntl(near_.get(), F_SETFL, O_NONBLOCK), 0);
    directory_fd_ = base::UniqueFd(::open(directory_.path().c_str(), O_RDONLY | O_DIRECTORY));
    auto pages = PagesFile::Create(directory_fd_.get(), "pages-1.img");
    ASSERT_TRUE(pages.ok()) << pages.status();
    pages_.emplace(*std::move(pages));
  }

  static WireExtent At(uint64_t page, uint64_t count) {
    return {kBase + page * kPage, count * kPage};
  }

  // Brings pages whose bytes are all `letter`.
  void Bring(const std::vector<WireExtent>& extents, char letter) {
    pages_->Announce(extents);
    uint64_t bytes = 0;
    for (const WireExtent& extent : extents) bytes += extent.bytes;
    const std::string content(bytes, letter);
    ASSERT_EQ(::write(far_.get(), content.data(), bytes), static_cast<ssize_t>(bytes));
    const absl::StatusOr<bool> whole = pages_->TakeFrom(near_.get());
    ASSERT_TRUE(whole.ok()) << whole.status();
    ASSERT_TRUE(*whole);
  }

  // The file, a letter for each page, once it was put in order.
  std::string Letters() {
    const absl::Status ordered = pages_->PutInOrder();
    EXPECT_TRUE(ordered.ok()) << ordered;
    const std::string text = *base::ReadWholeFile(directory_.File("pages-1.img"));
    EXPECT_EQ(text.size() % kPage, 0u);
    std::string letters;
    for (size_t at = 0; at < text.size(); at += kPage) {
      EXPECT_EQ(text.substr(at, kPage), std::string(kPage, text[at]));
      letters.push_back(text[at]);
    }
    return letters;
  }

  std::vector<std::string> Pages() {
    std::vector<std::string> result;
    const pagemap::ExtentSet pages = pages_->pages();
    for (const pagemap::Extent& extent : pages.extents()) {
      result.push_back(
          absl::StrCat((extent.start().value() - kBase) / kPage, "+", extent.pages().value()));
    }
    return result;
  }

  test_support::TempDir directory_ = *test_support::TempDir::Create();
  int ends_[2];
  base::UniqueFd near_;
  base::UniqueFd far_;
  base::UniqueFd directory_fd_;
  std::optional<PagesFile> pages_;
};

TEST_F(PagesFileTest, WhatComesInOrderStaysAsItCame) {
  Bring({At(0, 2), At(5, 1)}, 'a');
  Bring({At(6, 1), At(9, 3)}, 'b');
  EXPECT_THAT(Pages(), ::testing::ElementsAre("0+2", "5+2", "9+3"));
  EXPECT_EQ(Letters(), "aaabbbb");
}

TEST_F(PagesFileTest, WhatComesLaterWithALowerAddressIsMovedForward) {
  Bring({At(5, 2)}, 'b');
  Bring({At(0, 1), At(9, 1)}, 'a');
  EXPECT_EQ(Letters(), "abba");
}

TEST_F(PagesFileTest, OfAPageThatCameTwiceTheLaterBytesStay) {
  Bring({At(0, 5)}, 'a');
  Bring({At(1, 2)}, 'b');
  Bring({At(2, 1)}, 'c');
  EXPECT_EQ(Letters(), "abcaa");
  // The same again, now that the file was written anew.
  Bring({At(0, 1)}, 'd');
  EXPECT_EQ(Letters(), "dbcaa");
}

TEST_F(PagesFileTest, WhatWasForgottenIsNotInTheFile) {
  Bring({At(0, 6)}, 'a');
  Bring({At(8, 2)}, 'b');
  pages_->Forget(base::AddressRange::FromOrdered(kBase + 2 * kPage, kBase + 4 * kPage));
  pages_->Forget(base::AddressRange::FromOrdered(kBase + 9 * kPage, kBase + 20 * kPage));
  EXPECT_THAT(Pages(), ::testing::ElementsAre("0+2", "4+2", "8+1"));
  EXPECT_EQ(Letters(), "aaaab");
  pages_->Forget(base::AddressRange::FromOrdered(kBase, kBase + 100 * kPage));
  EXPECT_THAT(Pages(), ::testing::IsEmpty());
  EXPECT_EQ(Letters(), "");
}

TEST_F(PagesFileTest, PagesMayComeInPieces) {
  pages_->Announce(std::vector<WireExtent>{At(0, 1)});
  EXPECT_FALSE(*pages_->TakeFrom(near_.get()));
  const std::string half(kPage / 2, 'a');
  for (const bool last : {false, true}) {
    ASSERT_EQ(::write(far_.get(), half.data(), half.size()), static_cast<ssize_t>(half.size()));
    EXPECT_EQ(*pages_->TakeFrom(near_.get()), last);
  }
  EXPECT_EQ(Letters(), "a");
}

TEST_F(PagesFileTest, TakesNoByteOfWhatFollows) {
  pages_->Announce(std::vector<WireExtent>{At(0, 1)});
  const std::string more(kPage + 7, 'a');
  ASSERT_EQ(::write(far_.get(), more.data(), more.size()), static_cast<ssize_t>(more.size()));
  EXPECT_TRUE(*pages_->TakeFrom(near_.get()));
  char rest[100];
  EXPECT_EQ(::read(near_.get(), rest, sizeof rest), 7);
}

// O_APPEND stands for file systems that refuse splice(2).
TEST_F(PagesFileTest, WritesByHandWhereSpliceIsRefused) {
  int changed = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code none;
    if (std::filesystem::read_symlink(entry, none) != directory_.File("pages-1.img")) continue;
    ASSERT_EQ(::fcntl(std::stoi(entry.path().filename()), F_SETFL, O_APPEND), 0);
    ++changed;
  }
  ASSERT_EQ(changed, 1);
  Bring({At(3, 40)}, 'b');
  Bring({At(0, 2)}, 'a');
  EXPECT_EQ(Letters(), "aa" + std::string(40, 'b'));
}

TEST_F(PagesFileTest, AnEndBeforeTheLastByteIsAnError) {
  pages_->Announce(std::vector<WireExtent>{At(0, 2)});
  const std::string page(kPage, 'a');
  ASSERT_EQ(::write(far_.get(), page.data(), page.size()), static_cast<ssize_t>(page.size()));
  far_ = base::UniqueFd();
  EXPECT_TRUE(absl::IsAborted(pages_->TakeFrom(near_.get()).status()));
}

TEST_F(PagesFileTest, AFileThatMayNotGrowIsAnErrorWithItsName) {
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit before;
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit small = before;
  small.rlim_cur = kPage;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  pages_->Announce(std::vector<WireExtent>{At(0, 2)});
  const std::string pages(2 * kPage, 'a');
  ASSERT_EQ(::write(far_.get(), pages.data(), pages.size()), static_cast<ssize_t>(pages.size()));
  absl::Status status;
  for (int i = 0; i < 3 && status.ok(); ++i) status = pages_->TakeFrom(near_.get()).status();
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_EQ(base::ErrnoOf(status), EFBIG) << status;
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("pages-1.img"));
}

}  // namespace
}  // namespace predump::pageserver
