#include "src/transport/data_check.h"

#include <gtest/gtest.h>

#include <string>

namespace predump::transport {
namespace {

DataHeader Header(DataKind kind, uint32_t count, uint64_t arg) {
  return {static_cast<uint32_t>(kind), count, arg, 3, 0};
}

// The checks work at compile time, so they need nothing at run time either.
static_assert(CheckHeader({static_cast<uint32_t>(DataKind::kFinal), 0, 9, 9, 0}) ==
              DataDefect::kNone);

TEST(DataCheckTest, GoodHeadersPassAndHaveSmallTables) {
  EXPECT_EQ(CheckHeader(Header(DataKind::kMap, 1, 0)), DataDefect::kNone);
  EXPECT_EQ(CheckHeader(Header(DataKind::kUnmap, 1, 0)), DataDefect::kNone);
  EXPECT_EQ(CheckHeader(Header(DataKind::kDrop, kMaxExtentsPerFrame, 0)), DataDefect::kNone);
  EXPECT_EQ(CheckHeader(Header(DataKind::kPages, 1, kMaxPayloadBytes)), DataDefect::kNone);
  EXPECT_EQ(CheckHeader(Header(DataKind::kRoundEnd, 0, 77)), DataDefect::kNone);
  EXPECT_EQ(TableBytes(Header(DataKind::kMap, 1, 0)), sizeof(MapRecord));
  EXPECT_EQ(TableBytes(Header(DataKind::kPages, kMaxExtentsPerFrame, 4096)), 16384u);
  EXPECT_EQ(TableBytes(Header(DataKind::kFinal, 0, 1)), 0u);
}

TEST(DataCheckTest, EachBadHeaderIsNamed) {
  EXPECT_EQ(CheckHeader(Header(static_cast<DataKind>(0), 0, 0)), DataDefect::kUnknownKind);
  EXPECT_EQ(CheckHeader(Header(static_cast<DataKind>(99), 0, 0)), DataDefect::kUnknownKind);
  EXPECT_EQ(CheckHeader(Header(DataKind::kAcknowledge, 0, 0)), DataDefect::kUnknownKind);
  EXPECT_EQ(CheckHeader(Header(DataKind::kMap, 2, 0)), DataDefect::kBadCount);
  EXPECT_EQ(CheckHeader(Header(DataKind::kMap, 1, 1)), DataDefect::kBadArgument);
  EXPECT_EQ(CheckHeader(Header(DataKind::kUnmap, 0, 0)), DataDefect::kBadCount);
  EXPECT_EQ(CheckHeader(Header(DataKind::kDrop, kMaxExtentsPerFrame + 1, 0)),
            DataDefect::kBadCount);
  EXPECT_EQ(CheckHeader(Header(DataKind::kDrop, 1, 1)), DataDefect::kBadArgument);
  EXPECT_EQ(CheckHeader(Header(DataKind::kPages, 0xffffffff, 4096)), DataDefect::kBadCount);
  EXPECT_EQ(CheckHeader(Header(DataKind::kPages, 1, 0)), DataDefect::kBadPayloadSize);
  EXPECT_EQ(CheckHeader(Header(DataKind::kPages, 1, 4095)), DataDefect::kBadPayloadSize);
  EXPECT_EQ(CheckHeader(Header(DataKind::kPages, 1, kMaxPayloadBytes + 4096)),
            DataDefect::kBadPayloadSize);
  EXPECT_EQ(CheckHeader(Header(DataKind::kFinal, 1, 0)), DataDefect::kBadCount);
  DataHeader reserved = Header(DataKind::kFinal, 0, 0);
  reserved.reserved = 1;
  EXPECT_EQ(CheckHeader(reserved), DataDefect::kReservedNotZero);
}

TEST(DataCheckTest, ExtentsMustBeAlignedInsideAscendingAndAddUp) {
  const auto check = [](WireExtent a, WireExtent b, uint64_t payload) {
    const WireExtent extents[] = {a, b};
    return CheckExtents(Header(DataKind::kPages, 2, payload), extents);
  };
  EXPECT_EQ(check({0x1000, 0x1000}, {0x2000, 0x1000}, 0x2000), DataDefect::kNone);
  EXPECT_EQ(check({0x1000, 0x1000}, {kUserSpaceEnd - 0x1000, 0x1000}, 0x2000), DataDefect::kNone);
  EXPECT_EQ(check({0, 0x1000}, {0x2000, 0x1000}, 0x2000), DataDefect::kOutsideUserSpace);
  EXPECT_EQ(check({0x1000, 0x1000}, {0x2000, 0x1000}, 0x3000), DataDefect::kPayloadMismatch);
  EXPECT_EQ(check({0x1000, 0x2000}, {0x2000, 0x1000}, 0x3000), DataDefect::kNotAscending);
  EXPECT_EQ(check({0x2000, 0x1000}, {0x1000, 0x1000}, 0x2000), DataDefect::kNotAscending);
  EXPECT_EQ(check({0x1000, 0x1000}, {0x2800, 0x1000}, 0x2000), DataDefect::kUnaligned);
  EXPECT_EQ(check({0x1000, 0x1000}, {0x2000, 0x1001}, 0x2000), DataDefect::kUnaligned);
  EXPECT_EQ(check({0x1000, 0x1000}, {0x3000, 0}, 0x1000), DataDefect::kEmpty);
  EXPECT_EQ(check({0x1000, 0x1000}, {kUserSpaceEnd - 0x1000, 0x2000}, 0x3000),
            DataDefect::kOutsideUserSpace);
  // start + bytes would wrap to a small number.
  EXPECT_EQ(check({0x1000, 0x1000}, {0x2000, ~uint64_t{0xfff}}, 0x2000),
            DataDefect::kOutsideUserSpace);
  EXPECT_EQ(check({0x1000, 0x1000}, {~uint64_t{0xfff}, 0x2000}, 0x3000),
            DataDefect::kOutsideUserSpace);
}

TEST(DataCheckTest, MapRecordsMustMakeSense) {
  MapRecord good = {};
  good.start = 0x1000;
  good.bytes = 0x2000;
  good.prot = 3;
  EXPECT_EQ(CheckMapRecord(good), DataDefect::kNone);
  const auto changed = [&](auto change) {
    MapRecord record = good;
    change(record);
    return CheckMapRecord(record);
  };
  EXPECT_EQ(changed([](MapRecord& r) { r.bytes = 0; }), DataDefect::kEmpty);
  EXPECT_EQ(changed([](MapRecord& r) { r.start = 1; }), DataDefect::kUnaligned);
  EXPECT_EQ(changed([](MapRecord& r) { r.prot = 8; }), DataDefect::kBadProtection);
  EXPECT_EQ(changed([](MapRecord& r) { r.reserved = 1; }), DataDefect::kReservedNotZero);
  EXPECT_EQ(changed([](MapRecord& r) { r.flags = 1u << 31; }), DataDefect::kBadMapFlags);
  EXPECT_EQ(changed([](MapRecord& r) { r.flags = kMapShared; }), DataDefect::kBadMapFlags);
  EXPECT_EQ(changed([](MapRecord& r) { r.flags = kMapHugePages | kMapNoHugePages; }),
            DataDefect::kBadMapFlags);
  EXPECT_EQ(changed([](MapRecord& r) { r.flags = kMapWritable; }), DataDefect::kBadMapFlags);
  EXPECT_EQ(changed([](MapRecord& r) { r.flags = kMapGrowsDown | kMapFile; }),
            DataDefect::kBadMapFlags);
  EXPECT_EQ(changed([](MapRecord& r) { r.path_bytes = 1; }), DataDefect::kBadPath);
  EXPECT_EQ(changed([](MapRecord& r) { r.file_offset = 0x1000; }), DataDefect::kBadFileOffset);
  const auto file = [&](uint32_t path_bytes, uint64_t offset) {
    return changed([=](MapRecord& r) {
      r.flags = kMapFile;
      r.path_bytes = path_bytes;
      r.file_offset = offset;
    });
  };
  EXPECT_EQ(file(5, 0x1000), DataDefect::kNone);
  EXPECT_EQ(file(0, 0), DataDefect::kBadPath);
  EXPECT_EQ(file(kMaxPathBytes + 1, 0), DataDefect::kBadPath);
  EXPECT_EQ(file(5, 0x800), DataDefect::kBadFileOffset);
  EXPECT_EQ(file(5, uint64_t{1} << 63), DataDefect::kBadFileOffset);
}

TEST(DataCheckTest, PathsAreAbsoluteAndWithoutNul) {
  EXPECT_EQ(CheckPath("/a", 2), DataDefect::kNone);
  EXPECT_EQ(CheckPath("a", 1), DataDefect::kBadPath);
  EXPECT_EQ(CheckPath("/\0a", 3), DataDefect::kBadPath);
  EXPECT_EQ(CheckPath("/", 0), DataDefect::kBadPath);
}

TEST(DataCheckTest, EveryDefectHasItsOwnWords) {
  for (uint32_t i = 0; i <= static_cast<uint32_t>(DataDefect::kBadPath); ++i) {
    EXPECT_STRNE(DescribeDefect(static_cast<DataDefect>(i)), "an unknown defect") << i;
  }
}

}  // namespace
}  // namespace predump::transport
