#include "src/transport/relay_frame.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "tests/transport/relay_bytes.h"

namespace predump::transport {
namespace {

// Counts what it is told.
class Heard final : public RelayFrames {
 public:
  absl::Status OnHello(uint32_t window) override {
    absl::StrAppend(&all_, "hello ", window, "\n");
    return absl::OkStatus();
  }
  absl::Status OnFrame(const RelayHeader& header) override {
    absl::StrAppend(&all_, "frame ", header.stream, " ", static_cast<int>(header.kind), " ",
                    header.length, "\n");
    return absl::OkStatus();
  }
  absl::Status OnData(uint32_t, absl::string_view bytes) override {
    bytes_ += bytes.size();
    return absl::OkStatus();
  }
  std::string all_;
  size_t bytes_ = 0;
};

TEST(RelayParserTest, CutAnywhereItHearsTheSame) {
  const std::string bytes = Hello() + Frame(1, RelayKind::kOpen, 0) +
                            Frame(1, RelayKind::kData, 3, "abc") +
                            Frame(1, RelayKind::kCredit, 70'000) + Frame(0, RelayKind::kAlive, 0) +
                            Frame(1, RelayKind::kEnd, 0);
  for (size_t cut = 1; cut < bytes.size(); ++cut) {
    RelayParser parser;
    Heard heard;
    for (size_t at = 0; at < bytes.size(); at += cut) {
      ASSERT_TRUE(parser.Feed(absl::string_view(bytes).substr(at, cut), heard).ok());
    }
    EXPECT_EQ(heard.all_,
              "hello 1048576\nframe 1 1 0\nframe 1 3 70000\nframe 0 6 0\nframe 1 4 0\n");
    EXPECT_EQ(heard.bytes_, 3u);
    EXPECT_TRUE(parser.at_boundary());
  }
}

TEST(RelayParserTest, EndWithinAFrameIsNoBoundary) {
  const std::string bytes = Hello() + Frame(1, RelayKind::kData, 2, "ab");
  for (size_t size = 0; size < bytes.size(); ++size) {
    RelayParser parser;
    Heard heard;
    ASSERT_TRUE(parser.Feed(absl::string_view(bytes).substr(0, size), heard).ok());
    EXPECT_EQ(parser.at_boundary(), size == kRelayHelloBytes) << size;
  }
}

}  // namespace
}  // namespace predump::transport
