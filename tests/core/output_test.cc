// A core file is there whole or not at all, and a stream gets the same bytes.
#include "src/core/output.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "src/base/atomic_file.h"
#include "src/base/unique_fd.h"
#include "src/core/file_output.h"
#include "src/core/page_copier.h"
#include "src/core/stream_output.h"
#include "src/pagemap/copied_pages.h"
#include "tests/support/temp_dir.h"

namespace predump::core {
namespace {

using base::AddressRange;
using base::ByteCount;
using base::PageCount;
using pagemap::Extent;

constexpr uint64_t kPage = 4096;

// Page N holds N in each of its bytes.
class NumberedPages final : public pagemap::PageSource {
 public:
  absl::string_view name() const override { return "numbered"; }
  PageCount max_pages() const override { return PageCount(16); }
  absl::StatusOr<pagemap::FetchResult> Fetch(std::span<const Extent> wanted) override {
    pagemap::FetchResult result;
    for (const Extent& extent : wanted) {
      for (uint64_t at = extent.start().value(); at < extent.end().value(); at += kPage) {
        const Extent page = AddressRange::FromOrdered(at, at + kPage);
        result.consumed += PageCount(1);
        if (gone_.Contains(page.start())) {
          pagemap::AppendExtent(result.vanished, page);
          continue;
        }
        pagemap::AppendExtent(result.fetched, page);
        bytes_.insert(bytes_.end(), kPage, std::byte(at / kPage));
      }
    }
    return result;
  }
  base::ByteCount held() const override { return base::ByteCount(bytes_.size()); }
  absl::Status Push(int out_fd, base::ByteCount bytes) override {
    const std::vector<std::byte> held = std::exchange(bytes_, {});
    const std::span<const std::byte> all(held);
    bytes_.assign(held.begin() + static_cast<ptrdiff_t>(bytes.value()), held.end());
    return pagemap::WriteCopying(out_fd, all.first(bytes.value()));
  }
  absl::Status Finish() override { return absl::OkStatus(); }

  pagemap::ExtentSet gone_;

 private:
  std::vector<std::byte> bytes_;
};

Taken Take(uint64_t first, uint64_t pages, const std::vector<uint64_t>& held, bool rest_is_zeros) {
  Taken taken;
  taken.mapping.entry.range = AddressRange::FromOrdered(first * kPage, (first + pages) * kPage);
  taken.rest_is_zeros = rest_is_zeros;
  for (const uint64_t page : held) {
    taken.pages.Add(AddressRange::FromOrdered(page * kPage, (page + 1) * kPage));
  }
  return taken;
}

// A layout with holes, neighbours in memory that are apart in the file, and a hole at the end.
struct Example {
  std::vector<Taken> taken = {Take(1, 40, {1, 3, 4, 5, 20, 30}, true), Take(41, 4, {41}, false),
                              Take(45, 3, {45, 46, 47}, true), Take(60, 5, {60, 61}, true)};
  Layout layout = Layout::Create(taken, ByteCount(8));
  NumberedPages source;

  absl::Status WriteTo(Output& output) {
    const std::string head = layout.Headers() + "notesnot";
    if (absl::Status status = output.Write(0, std::as_bytes(std::span(head))); !status.ok()) {
      return status;
    }
    pagemap::ExtentSet pages;
    for (const Taken& one : taken) pages.AddAll(one.pages);
    // Page 4 was copied at another moment.
    std::vector<MemoryCopy> copies(1);
    copies[0].range = AddressRange::FromOrdered(4 * kPage, 5 * kPage);
    copies[0].bytes.assign(kPage, std::byte{0xcc});
    PageCopier copier(layout, source, output, -1);
    absl::Status status = copier.Copy(pages, copies);
    if (status.ok()) status = output.Finish(layout.file_size());
    return status;
  }

  std::string Expected() const {
    std::string bytes = layout.Headers() + "notesnot";
    bytes.resize(layout.file_size(), '\0');
    for (const Taken& one : taken) {
      for (const Extent& extent : one.pages.extents()) {
        for (uint64_t at = extent.start().value(); at < extent.end().value(); at += kPage) {
          if (source.gone_.Contains(base::RemoteAddress(at))) continue;
          const char fill = at / kPage == 4 ? '\xcc' : static_cast<char>(at / kPage);
          std::memset(bytes.data() + layout.PlaceOf(base::RemoteAddress(at))->offset, fill, kPage);
        }
      }
    }
    return bytes;
  }
};

std::vector<std::string> Listing(const std::string& path) {
  std::vector<std::string> names;
  DIR* directory = ::opendir(path.c_str());
  while (const dirent* entry = ::readdir(directory)) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  ::closedir(directory);
  return names;
}

class FileOutputTest : public testing::TestWithParam<Aside> {
 protected:
  test_support::TempDir directory_ = *test_support::TempDir::Create();
  std::string path_ = directory_.File("core");
};

TEST_P(FileOutputTest, HoldsEveryPageAtItsPlaceAndReplacesAtTheEndOnly) {
  ASSERT_TRUE(base::WriteFileAtomically(path_, "old").ok());
  Example example;
  auto output = FileOutput::Create(path_, GetParam());
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_EQ(Listing(directory_.path()).size(), GetParam() == Aside::kNamed ? 2u : 1u);
  EXPECT_EQ(*base::ReadWholeFile(path_), "old");
  const absl::Status status = example.WriteTo(**output);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(*base::ReadWholeFile(path_), example.Expected());
  EXPECT_EQ(Listing(directory_.path()), std::vector<std::string>{"core"});
  struct stat info;
  ASSERT_EQ(::stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
}

TEST_P(FileOutputTest, LeavesNothingThatWasNotFinished) {
  auto output = FileOutput::Create(path_, GetParam());
  ASSERT_TRUE(output.ok()) << output.status();
  const std::string text = "half";
  ASSERT_TRUE((*output)->Write(0, std::as_bytes(std::span(text))).ok());
  output->reset();
  EXPECT_TRUE(Listing(directory_.path()).empty());
}

TEST_P(FileOutputTest, PagesThatAreGoneReadAsZeros) {
  Example example;
  example.source.gone_.Add(AddressRange::FromOrdered(5 * kPage, 21 * kPage));
  auto output = FileOutput::Create(path_, GetParam());
  ASSERT_TRUE(output.ok()) << output.status();
  ASSERT_TRUE(example.WriteTo(**output).ok());
  EXPECT_EQ(*base::ReadWholeFile(path_), example.Expected());
}

INSTANTIATE_TEST_SUITE_P(Both, FileOutputTest, testing::Values(Aside::kUnnamed, Aside::kNamed),
                         [](const auto& one) {
                           return one.param == Aside::kNamed ? "Named" : "Unnamed";
                         });

TEST(StreamOutputTest, GetsTheSameBytesOneAfterTheOther) {
  Example example;
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  std::string read;
  std::thread reader([&] {
    const base::UniqueFd fd(ends[0]);
    char buffer[1000];
    ssize_t got;
    while ((got = ::read(fd.get(), buffer, sizeof buffer)) > 0) {
      read.append(buffer, static_cast<size_t>(got));
    }
  });
  auto output = StreamOutput::Create(base::UniqueFd(ends[1]), "the pipe", -1);
  const absl::Status status = output.ok() ? example.WriteTo(**output) : output.status();
  output = absl::CancelledError("over");  // closes the pipe whatever happened
  reader.join();
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(read == example.Expected());
}

}  // namespace
}  // namespace predump::core
