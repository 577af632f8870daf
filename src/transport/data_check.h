// What a reader of data_format.h must check, as pure functions. Bounded, no library, no allocation:
// the landing, which is freestanding, uses them as they are.
//
// Order: CheckHeader, then read TableBytes(header) bytes, then CheckExtents or CheckMapRecord (and,
// once its path_bytes are read, CheckPath), and only then act on what was read.
#ifndef PREDUMP_TRANSPORT_DATA_CHECK_H_
#define PREDUMP_TRANSPORT_DATA_CHECK_H_

#include <stdint.h>

#include "src/transport/data_format.h"

namespace predump::transport {

// x86-64 has one base page size.
inline constexpr uint64_t kWirePageBytes = 4096;
// Page zero never holds anything; vm.mmap_min_addr may forbid more, which mmap(2) then says.
inline constexpr uint64_t kUserSpaceStart = kWirePageBytes;

enum class DataDefect : uint32_t {
  kNone = 0,
  kUnknownKind = 1,
  kReservedNotZero = 2,
  kBadCount = 3,
  kBadPayloadSize = 4,
  kBadArgument = 5,
  kUnaligned = 6,
  kEmpty = 7,
  kOutsideUserSpace = 8,
  kNotAscending = 9,
  kPayloadMismatch = 10,
  kBadMapFlags = 11,
  kBadProtection = 12,
  kBadFileOffset = 13,
  kBadPath = 14,
};

constexpr const char* DescribeDefect(DataDefect defect) {
  switch (defect) {
    case DataDefect::kNone:
      return "no defect";
    case DataDefect::kUnknownKind:
      return "a frame of unknown kind";
    case DataDefect::kReservedNotZero:
      return "a reserved field that is not zero";
    case DataDefect::kBadCount:
      return "a count out of bounds";
    case DataDefect::kBadPayloadSize:
      return "a payload size out of bounds";
    case DataDefect::kBadArgument:
      return "an argument where none belongs";
    case DataDefect::kUnaligned:
      return "a range that is not page-aligned";
    case DataDefect::kEmpty:
      return "an empty range";
    case DataDefect::kOutsideUserSpace:
      return "a range outside user space";
    case DataDefect::kNotAscending:
      return "ranges that are not ascending and disjoint";
    case DataDefect::kPayloadMismatch:
      return "a payload size that differs from its extents";
    case DataDefect::kBadMapFlags:
      return "mapping flags that do not go together";
    case DataDefect::kBadProtection:
      return "an unknown protection";
    case DataDefect::kBadFileOffset:
      return "a bad file offset";
    case DataDefect::kBadPath:
      return "a bad path";
  }
  return "an unknown defect";
}

// One range by itself.
constexpr DataDefect CheckRange(uint64_t start, uint64_t bytes) {
  if ((start | bytes) % kWirePageBytes != 0) return DataDefect::kUnaligned;
  if (bytes == 0) return DataDefect::kEmpty;
  if (start < kUserSpaceStart || start >= kUserSpaceEnd || bytes > kUserSpaceEnd - start) {
    return DataDefect::kOutsideUserSpace;
  }
  return DataDefect::kNone;
}

// A header that the source sends. OK means: TableBytes() is right and small.
constexpr DataDefect CheckHeader(const DataHeader& header) {
  if (header.reserved != 0) return DataDefect::kReservedNotZero;
  switch (static_cast<DataKind>(header.kind)) {
    case DataKind::kMap:
      if (header.count != 1) return DataDefect::kBadCount;
      return header.arg == 0 ? DataDefect::kNone : DataDefect::kBadArgument;
    case DataKind::kUnmap:
    case DataKind::kDrop:
      if (header.count == 0 || header.count > kMaxExtentsPerFrame) return DataDefect::kBadCount;
      return header.arg == 0 ? DataDefect::kNone : DataDefect::kBadArgument;
    case DataKind::kPages:
      if (header.count == 0 || header.count > kMaxExtentsPerFrame) return DataDefect::kBadCount;
      if (header.arg == 0 || header.arg > kMaxPayloadBytes || header.arg % kWirePageBytes != 0) {
        return DataDefect::kBadPayloadSize;
      }
      return DataDefect::kNone;
    case DataKind::kRoundEnd:
    case DataKind::kFinal:
      return header.count == 0 ? DataDefect::kNone : DataDefect::kBadCount;
    case DataKind::kAcknowledge:
    case DataKind::kLandingError:
      break;  // these go the other way
  }
  return DataDefect::kUnknownKind;
}

// Bytes of the table that follows a header CheckHeader found good: at most
// kMaxExtentsPerFrame * sizeof(WireExtent). The path of a map and the payload are not in it.
constexpr uint64_t TableBytes(const DataHeader& header) {
  switch (static_cast<DataKind>(header.kind)) {
    case DataKind::kMap:
      return sizeof(MapRecord);
    case DataKind::kUnmap:
    case DataKind::kDrop:
    case DataKind::kPages:
      return header.count * sizeof(WireExtent);
    default:
      return 0;
  }
}

// The header.count extents of an unmap, drop or pages frame. `where` gets the address of the one
// that is bad.
constexpr DataDefect CheckExtents(const DataHeader& header, const WireExtent* extents,
                                  uint64_t* where = nullptr) {
  uint64_t previous_end = 0;
  uint64_t total_bytes = 0;
  for (uint32_t i = 0; i < header.count; ++i) {
    if (where != nullptr) *where = extents[i].start;
    const DataDefect defect = CheckRange(extents[i].start, extents[i].bytes);
    if (defect != DataDefect::kNone) return defect;
    if (extents[i].start < previous_end) return DataDefect::kNotAscending;
    previous_end = extents[i].start + extents[i].bytes;
    total_bytes += extents[i].bytes;  // disjoint and inside user space: cannot wrap
  }
  if (static_cast<DataKind>(header.kind) == DataKind::kPages && total_bytes != header.arg) {
    return DataDefect::kPayloadMismatch;
  }
  return DataDefect::kNone;
}

constexpr DataDefect CheckMapRecord(const MapRecord& record) {
  constexpr uint32_t kKnownFlags = kMapShared | kMapFile | kMapGrowsDown | kMapHugePages |
                                   kMapNoReserve | kMapNoHugePages | kMapWritable;
  constexpr uint32_t kKnownProtection = 1u | 2u | 4u;  // PROT_READ, PROT_WRITE, PROT_EXEC
  const DataDefect defect = CheckRange(record.start, record.bytes);
  if (defect != DataDefect::kNone) return defect;
  if (record.reserved != 0) return DataDefect::kReservedNotZero;
  if ((record.prot & ~kKnownProtection) != 0) return DataDefect::kBadProtection;
  const bool is_file = (record.flags & kMapFile) != 0;
  const bool is_shared = (record.flags & kMapShared) != 0;
  // Shared memory without a file cannot be made from here, and a private mapping needs no writing.
  if ((record.flags & ~kKnownFlags) != 0 || (is_shared && !is_file) ||
      ((record.flags & kMapWritable) != 0 && !is_shared) ||
      ((record.flags & kMapGrowsDown) != 0 && is_file) ||
      (record.flags & (kMapHugePages | kMapNoHugePages)) == (kMapHugePages | kMapNoHugePages)) {
    return DataDefect::kBadMapFlags;
  }
  if (is_file ? (record.path_bytes == 0 || record.path_bytes > kMaxPathBytes)
              : record.path_bytes != 0) {
    return DataDefect::kBadPath;
  }
  // Far beyond any file, and no sum with a size inside user space can pass loff_t.
  constexpr uint64_t kMaxFileOffset = uint64_t{1} << 62;
  if (record.file_offset % kWirePageBytes != 0 || record.file_offset > kMaxFileOffset ||
      (!is_file && record.file_offset != 0)) {
    return DataDefect::kBadFileOffset;
  }
  return DataDefect::kNone;
}

// The path of a file mapping: absolute, without NUL.
constexpr DataDefect CheckPath(const char* path, uint32_t path_bytes) {
  if (path_bytes == 0 || path_bytes > kMaxPathBytes || path[0] != '/') return DataDefect::kBadPath;
  for (uint32_t i = 0; i < path_bytes; ++i) {
    if (path[i] == '\0') return DataDefect::kBadPath;
  }
  return DataDefect::kNone;
}

}  // namespace predump::transport

#endif  // PREDUMP_TRANSPORT_DATA_CHECK_H_
