#include "src/images/pagemap_image.h"

#include <unistd.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/criu_memory.pb.h"
#include "src/images/image_file.h"
#include "tests/images/stored_pages.h"
#include "tests/support/child_process.h"
#include "tests/support/temp_dir.h"

namespace predump::images {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::kTask;

constexpr PagesOf kObject{PagesOf::Kind::kSharedMemory, 0x1234567890};

class PagemapImage : public ::testing::Test {
 protected:
  // The error of reading one pagemap with these entries, beside a pages file of 64 pages.
  std::string ErrorOf(const std::vector<PagemapEntry>& entries, const PagesOf& of = kTask) {
    testing::WriteEntries(fd_.get(), entries, of);
    testing::WritePages(fd_.get(), 64, 0);
    const absl::StatusOr<Pagemap> pagemap = ReadPagemap(fd_.get(), of);
    if (pagemap.ok()) return "";
    EXPECT_EQ(pagemap.status().code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(pagemap.status().message(), HasSubstr(of.PagemapName()));
    return std::string(pagemap.status().message());
  }

  // What ReadPagemap makes of one entry, given as it is in the file.
  absl::StatusOr<Pagemap> ReadMessage(const criu::pagemap_entry& message) {
    auto writer = ImageWriter::Create(fd_.get(), kTask.PagemapName(), ImageMagic::kPagemap);
    criu::pagemap_head head;
    head.set_pages_id(1);
    EXPECT_TRUE(writer->Add(head).ok());
    EXPECT_TRUE(writer->Add(message).ok());
    EXPECT_TRUE(writer->Finish().ok());
    testing::WritePages(fd_.get(), 4, 0);
    return ReadPagemap(fd_.get(), kTask);
  }

  test_support::TempDir directory_ = *test_support::TempDir::Create();
  base::UniqueFd fd_ = testing::MakeDirectory(directory_.path());
};

TEST_F(PagemapImage, NamesFilesAsCriuDoes) {
  EXPECT_EQ(kTask.PagemapName(), "pagemap-7.img");
  EXPECT_EQ(kObject.PagemapName(), "pagemap-shmem-78187493520.img");
  EXPECT_EQ(PagesName(65537), "pages-65537.img");
}

TEST_F(PagemapImage, ReadsWhatItWrote) {
  Pagemap written;
  written.pages_id = 1;
  written.entries = {{0x1000, 2, kPagePresent},
                     {0x3000, 1, kPageParent},
                     {0x7ffffffe0000, 31, kPagePresent | kPageLazy}};
  testing::WritePages(fd_.get(), 33, 0);
  ASSERT_TRUE(WritePagemap(fd_.get(), kTask, written).ok());
  const absl::StatusOr<Pagemap> read = ReadPagemap(fd_.get(), kTask);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->pages_id, 1u);
  EXPECT_EQ(read->entries, written.entries);
}

TEST_F(PagemapImage, CritDecodesWhatItWrote) {
  if (!test_support::RunCommand({"crit", "--version"}).ok()) {
    GTEST_SKIP() << "crit is not installed (Debian's package criu)";
  }
  Pagemap pagemap;
  pagemap.pages_id = 65537;
  pagemap.entries = {{0x1000, 2, kPagePresent}, {0x3000, 1, kPageParent}, {0x9000, 3, 6}};
  ASSERT_TRUE(WritePagemap(fd_.get(), kTask, pagemap).ok());
  const auto decoded =
      test_support::RunCommand({"crit", "decode", "-i", directory_.File(kTask.PagemapName())});
  ASSERT_TRUE(decoded.ok() && decoded->exit.ok()) << decoded->errors;
  std::string text = decoded->output;
  std::erase_if(text, [](char c) { return c == ' ' || c == '\n'; });
  EXPECT_EQ(text, R"({"magic":"PAGEMAP","entries":[{"pages_id":65537},)"
                  R"({"vaddr":4096,"nr_pages":2,"flags":4},{"vaddr":12288,"nr_pages":1,"flags":1},)"
                  R"({"vaddr":36864,"nr_pages":3,"flags":6}]})");
}

// The older of the two counts has 32 bits: a reader up to 4.1.1 must not see it cut.
TEST_F(PagemapImage, SplitsWhatTheOlderCountCannotSay) {
  constexpr uint64_t kPages = (uint64_t{1} << 32) + 5;
  Pagemap pagemap;
  pagemap.entries = {{0x1000, kPages, kPageParent}};
  ASSERT_TRUE(WritePagemap(fd_.get(), kTask, pagemap).ok());
  auto reader = ImageReader::Open(fd_.get(), kTask.PagemapName(), ImageMagic::kPagemap);
  ASSERT_TRUE(reader.ok());
  criu::pagemap_head head;
  ASSERT_TRUE(*reader->Next(head));
  uint64_t next = 0x1000;
  criu::pagemap_entry entry;
  while (*reader->Next(entry)) {
    EXPECT_EQ(entry.vaddr(), next);
    EXPECT_EQ(entry.compat_nr_pages(), entry.nr_pages());
    next += entry.nr_pages() * 4096;
  }
  EXPECT_EQ(next, 0x1000 + kPages * 4096);
}

TEST_F(PagemapImage, ReadsBothPlacesOfTheCountAndBothFormsOfParent) {
  criu::pagemap_entry message;
  message.set_vaddr(0x1000);
  message.set_compat_nr_pages(3);  // up to 4.1.1: field 2 only; flags absent: present
  EXPECT_THAT(ReadMessage(message)->entries, ElementsAre(PagemapEntry{0x1000, 3, kPagePresent}));
  message.set_in_parent(true);  // before there were flags
  EXPECT_THAT(ReadMessage(message)->entries, ElementsAre(PagemapEntry{0x1000, 3, kPageParent}));
  message.set_flags(kPageParent);
  EXPECT_THAT(ReadMessage(message)->entries, ElementsAre(PagemapEntry{0x1000, 3, kPageParent}));
  message.set_in_parent(false);
  message.set_flags(kPagePresent);
  message.set_compat_nr_pages(0);  // 4.2: field 5 only
  message.set_nr_pages(4);
  EXPECT_THAT(ReadMessage(message)->entries, ElementsAre(PagemapEntry{0x1000, 4, kPagePresent}));
  message.set_compat_nr_pages(1);
  EXPECT_THAT(ReadMessage(message)->entries, ElementsAre(PagemapEntry{0x1000, 4, kPagePresent}));
}

TEST_F(PagemapImage, IsNotFoundWhereThereIsNone) {
  EXPECT_TRUE(absl::IsNotFound(ReadPagemap(fd_.get(), kTask).status()));
}

TEST_F(PagemapImage, RefusesOneWithoutAHead) {
  auto writer = ImageWriter::Create(fd_.get(), kTask.PagemapName(), ImageMagic::kPagemap);
  ASSERT_TRUE(writer->Finish().ok());
  const absl::Status status = ReadPagemap(fd_.get(), kTask).status();
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(status.message(), HasSubstr("no head"));
}

TEST_F(PagemapImage, RefusesEntriesOutOfOrder) {
  EXPECT_THAT(ErrorOf({{0x3000, 1, 4}, {0x1000, 1, 4}}), HasSubstr("0x1000 begins before the end"));
  EXPECT_THAT(ErrorOf({{0x1000, 2, 4}, {0x2000, 1, 4}}), HasSubstr("0x2000 begins before the end"));
  EXPECT_THAT(ErrorOf({{0x1000, 1, 4}, {0x1000, 1, 1}}), HasSubstr("0x1000 begins before the end"));
  EXPECT_EQ(ErrorOf({{0x1000, 1, 4}, {0x2000, 1, 4}}), "");
}

TEST_F(PagemapImage, RefusesAbsurdEntries) {
  EXPECT_THAT(ErrorOf({{0x1001, 1, 4}}), HasSubstr("does not begin at a page"));
  EXPECT_THAT(ErrorOf({{0x1000, 0, 4}}), HasSubstr("has no pages"));
  EXPECT_THAT(ErrorOf({{0x7ffffffff000, 1, 4}}), HasSubstr("beyond what a process"));
  EXPECT_THAT(ErrorOf({{0x7fffffffe000, 2, 4}}), HasSubstr("beyond what a process"));
  EXPECT_THAT(ErrorOf({{0x1000, ~uint64_t{0}, 4}}), HasSubstr("beyond what a process"));
  // 2^52 pages are 2^64 bytes: start + size wraps round to where it began.
  EXPECT_THAT(ErrorOf({{0x1000, uint64_t{1} << 52, 4}}), HasSubstr("beyond what a process"));
  EXPECT_THAT(ErrorOf({{~uint64_t{0xfff}, 1, 4}}), HasSubstr("beyond what a process"));
  EXPECT_THAT(ErrorOf({{uint64_t{1} << 63, 1, 4}}, kObject), HasSubstr("beyond what an object"));
  EXPECT_EQ(ErrorOf({{uint64_t{1} << 50, 1, 4}}, kObject), "");
}

TEST_F(PagemapImage, RefusesFlagsThatTellNotWhereThePagesAre) {
  EXPECT_THAT(ErrorOf({{0x1000, 1, 0}}), HasSubstr("neither here nor in the parent"));
  EXPECT_THAT(ErrorOf({{0x1000, 1, kPageLazy}}), HasSubstr("neither here nor in the parent"));
  EXPECT_THAT(ErrorOf({{0x1000, 1, kPageParent | kPagePresent}}), HasSubstr("both"));
  EXPECT_THAT(ErrorOf({{0x1000, 1, kPagePresent | 8}}), HasSubstr("not known"));
}

TEST_F(PagemapImage, RefusesAPagesFileThatIsShorterOrMissing) {
  testing::WriteEntries(fd_.get(), {{0x1000, 2, 4}, {0x3000, 7, 1}, {0xa000, 2, 4}});
  testing::WritePages(fd_.get(), 4, 0);
  EXPECT_TRUE(ReadPagemap(fd_.get(), kTask).ok());
  ASSERT_EQ(::truncate(directory_.File("pages-1.img").c_str(), 4 * 4096 - 1), 0);
  absl::Status status = ReadPagemap(fd_.get(), kTask).status();
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(status.message(), HasSubstr("holds 3 of the 4 pages"));
  ASSERT_EQ(::unlink(directory_.File("pages-1.img").c_str()), 0);
  status = ReadPagemap(fd_.get(), kTask).status();
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(status.message(), HasSubstr("pages-1.img is missing"));
}

TEST_F(PagemapImage, NeedsNoPagesFileWhereAllIsInTheParent) {
  testing::WriteEntries(fd_.get(), {{0x1000, 2, kPageParent}});
  EXPECT_TRUE(ReadPagemap(fd_.get(), kTask).ok());
}

TEST_F(PagemapImage, RefusesToWriteWhatItWouldNotRead) {
  Pagemap pagemap;
  pagemap.entries = {{0x3000, 1, 4}, {0x1000, 1, 4}};
  EXPECT_FALSE(WritePagemap(fd_.get(), kTask, pagemap).ok());
  pagemap.entries = {{0x1000, 1, 0}};
  EXPECT_FALSE(WritePagemap(fd_.get(), kTask, pagemap).ok());
}

}  // namespace
}  // namespace predump::images
