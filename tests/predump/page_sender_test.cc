#include "src/predump/page_sender.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "src/predump/native_sink.h"
#include "src/transport/data_format.h"

namespace predump {
namespace {

using base::PageCount;
using pagemap::Extent;
using pagemap::ExtentSet;
using transport::DataHeader;
using transport::DataKind;
using transport::WireExtent;

constexpr uint64_t kPage = 4096;

Extent Pages(uint64_t first, uint64_t count) {
  return Extent::FromOrdered(first * kPage, (first + count) * kPage);
}

// Serves each page as 4096 bytes of its number; some pages are gone, some fetches end early.
class FakeSource : public pagemap::PageSource {
 public:
  absl::string_view name() const override { return "fake"; }
  PageCount max_pages() const override { return PageCount(max_pages_); }

  absl::StatusOr<pagemap::FetchResult> Fetch(std::span<const Extent> wanted) override {
    pagemap::FetchResult result;
    held_.clear();
    uint64_t asked = 0;
    for (const Extent& extent : wanted) asked += extent.pages().value();
    EXPECT_LE(asked, max_pages_);
    most_asked_ = std::max(most_asked_, asked);
    if (stuck_) return result;
    uint64_t taken = 0;
    for (const Extent& extent : wanted) {
      for (uint64_t a = extent.start().value(); a < extent.end().value(); a += kPage) {
        if (taken == most_per_fetch_) return result;
        ++taken;
        result.consumed += PageCount(1);
        const uint64_t page = a / kPage;
        std::vector<Extent>& list = page % 7 == 3 ? result.vanished : result.fetched;
        list.push_back(Pages(page, 1));
        if (page % 7 != 3) held_.append(kPage, static_cast<char>(page));
      }
    }
    return result;
  }

  base::ByteCount held() const override { return base::ByteCount(held_.size()); }
  absl::Status Push(int out_fd, base::ByteCount bytes) override {
    size_t done = 0;
    while (done < bytes.value()) {
      const ssize_t n = ::send(out_fd, held_.data() + done, bytes.value() - done, MSG_NOSIGNAL);
      if (n <= 0) return absl::UnavailableError("the reader is gone");
      done += static_cast<size_t>(n);
    }
    held_.erase(0, done);
    return absl::OkStatus();
  }

  absl::Status Finish() override { return absl::OkStatus(); }

  uint64_t max_pages_ = 5;
  uint64_t most_per_fetch_ = 1000;
  uint64_t most_asked_ = 0;
  bool stuck_ = false;

 private:
  std::string held_;
};

// Reads the data connection as a landing would and notes what arrived.
class Reader {
 public:
  explicit Reader(int fd) : thread_([this, fd] { Run(fd); }) {}
  ~Reader() { Join(); }
  void Join() {
    if (thread_.joinable()) thread_.join();
  }

  ExtentSet pages;
  ExtentSet drops;
  std::vector<DataKind> kinds;
  bool contents_right = true;

 private:
  static bool ReadAll(int fd, void* out, size_t size) {
    return size == 0 || ::recv(fd, out, size, MSG_WAITALL) == static_cast<ssize_t>(size);
  }

  void Run(int fd) {
    char preamble[24];
    if (!ReadAll(fd, preamble, sizeof preamble)) return;
    DataHeader header;
    while (ReadAll(fd, &header, sizeof header)) {
      const auto kind = static_cast<DataKind>(header.kind);
      kinds.push_back(kind);
      if (kind == DataKind::kRoundEnd) continue;
      std::vector<WireExtent> extents(header.count);
      if (!ReadAll(fd, extents.data(), extents.size() * sizeof(WireExtent))) return;
      for (const WireExtent& extent : extents) {
        ExtentSet& set = kind == DataKind::kPages ? pages : drops;
        set.Add(Extent::FromOrdered(extent.start, extent.start + extent.bytes));
        if (kind != DataKind::kPages) continue;
        for (uint64_t a = extent.start; a < extent.start + extent.bytes; a += kPage) {
          char page[kPage];
          if (!ReadAll(fd, page, kPage)) return;
          const char expected = static_cast<char>(a / kPage);
          for (const char byte : page) contents_right &= byte == expected;
        }
      }
    }
  }

  std::thread thread_;
};

class PageSenderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    writer_.reset();  // lets the reader of an earlier run end
    reader_.reset();
    int ends[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    reading_end_ = base::UniqueFd(ends[1]);
    reader_ = std::make_unique<Reader>(ends[1]);
    auto writer = transport::DataWriter::Start(base::UniqueFd(ends[0]), std::string(16, 't'));
    ASSERT_TRUE(writer.ok()) << writer.status();
    writer_.emplace(*std::move(writer));
  }

  // Sends, closes, and waits for the reader to have it all.
  absl::StatusOr<PageCount> Send(const pagemap::DirtySet& dirty,
                                 base::ByteCount bytes_per_second = base::ByteCount(0)) {
    transport::BandwidthLimiter limiter(bytes_per_second);
    NativeSink sink(*writer_, /*control_fd=*/-1);
    PageSender sender(sink, source_, limiter);
    const uint64_t all = dirty.pages.pages().value();
    absl::StatusOr<PageCount> sent =
        sender.Send(pagemap::VmaList(), dirty, [&](PageCount pages, PageCount left) {
          progress_.push_back(pages.value());
          EXPECT_LE(pages.value() + left.value(), all);
          left_ = left.value();
        });
    if (sent.ok()) {
      EXPECT_TRUE(writer_->EndRound(0).ok());
    }
    writer_.reset();
    reader_->Join();
    return sent;
  }

  static ExtentSet WithoutVanished(const ExtentSet& set) {
    ExtentSet left;
    for (const Extent& extent : set.extents()) {
      for (uint64_t a = extent.start().value(); a < extent.end().value(); a += kPage) {
        if (a / kPage % 7 != 3) left.Add(Pages(a / kPage, 1));
      }
    }
    return left;
  }

  FakeSource source_;
  base::UniqueFd reading_end_;
  std::unique_ptr<Reader> reader_;
  std::optional<transport::DataWriter> writer_;
  std::vector<uint64_t> progress_;
  uint64_t left_ = 0;
};

TEST_F(PageSenderTest, EveryPageArrivesOnceHoweverExtentsAndFetchesAreCut) {
  for (const uint64_t most : {1u, 2u, 3u, 5u}) {
    SCOPED_TRACE(most);
    SetUp();
    source_.most_per_fetch_ = most;
    progress_.clear();
    pagemap::DirtySet dirty;
    for (const auto& [first, count] : std::vector<std::pair<uint64_t, uint64_t>>{
             {16, 1}, {18, 4}, {30, 13}, {50, 5}, {60, 1}, {62, 11}}) {
      dirty.pages.Add(Pages(first, count));
    }
    const auto sent = Send(dirty);
    ASSERT_TRUE(sent.ok()) << sent.status();
    const ExtentSet expected = WithoutVanished(dirty.pages);
    EXPECT_EQ(reader_->pages, expected);
    EXPECT_TRUE(reader_->contents_right);
    EXPECT_EQ(*sent, expected.pages());
    ASSERT_FALSE(progress_.empty());
    EXPECT_EQ(progress_.back(), expected.pages().value());
    EXPECT_EQ(left_, 0u);
  }
}

TEST_F(PageSenderTest, DropsGoBeforePages) {
  pagemap::DirtySet dirty;
  dirty.pages.Add(Pages(32, 1));
  dirty.drop.Add(Pages(16, 100));
  ASSERT_TRUE(Send(dirty).ok());
  ASSERT_GE(reader_->kinds.size(), 2u);
  EXPECT_EQ(reader_->kinds[0], DataKind::kDrop);
  EXPECT_EQ(reader_->kinds[1], DataKind::kPages);
  EXPECT_EQ(reader_->drops.pages(), PageCount(100));
}

TEST_F(PageSenderTest, ASourceThatMakesNoProgressIsAnErrorNotAHang) {
  source_.stuck_ = true;
  pagemap::DirtySet dirty;
  dirty.pages.Add(Pages(16, 1));
  EXPECT_EQ(Send(dirty).status().code(), absl::StatusCode::kInternal);
}

TEST_F(PageSenderTest, ALimitedBandwidthIsFilledEvenly) {
  struct Case {
    uint64_t pages_per_second;
    uint64_t most_at_once;
  };
  for (const Case& each :
       {Case{20, 2}, Case{4, 1}}) {  // a tenth of a second's, but a page at least
    SetUp();
    source_.most_asked_ = 0;
    pagemap::DirtySet dirty;
    dirty.pages.Add(Pages(70, 4));
    const auto sent = Send(dirty, base::ByteCount(each.pages_per_second * kPage));
    ASSERT_TRUE(sent.ok()) << sent.status();
    EXPECT_EQ(reader_->pages, WithoutVanished(dirty.pages));
    EXPECT_EQ(source_.most_asked_, each.most_at_once);
  }
}

}  // namespace
}  // namespace predump
