// The rules of transport/data_format.h, checked: everything a hostile or broken source could put
// into a frame is refused here, before it sizes, addresses or opens anything.
//
// Pure functions over bytes already received; freestanding (the landing has no library), and
// usable from ordinary code, so that tests and the fuzzer run exactly what the landing runs.
#ifndef PREDUMP_RESTORE_LANDING_FRAME_CHECK_H_
#define PREDUMP_RESTORE_LANDING_FRAME_CHECK_H_

#include <stdint.h>

#include "src/transport/data_format.h"

namespace predump::restore {

enum class FrameFault : uint32_t {
  kNone = 0,
  kUnknownKind,
  kReservedNotZero,
  kBadCount,     // not what this kind allows
  kBadArgument,  // `arg` must be zero for this kind
  kBadPayload,   // zero, not whole pages, too large, or not the sum of the extents
  kExtentUnaligned,
  kExtentEmpty,
  kExtentOutside,   // beyond user space, below the first mappable page, or wrapping round
  kExtentDisorder,  // not ascending and disjoint
  kBadMapFlags,     // unknown or contradictory
  kBadProtection,   // bits other than PROT_READ, PROT_WRITE, PROT_EXEC
  kBadFileOffset,
  kBadPath,  // missing, too long, not absolute, or with a NUL in it
};

inline constexpr uint64_t kWirePageBytes = 4096;
// Page zero never holds anything; vm.mmap_min_addr may forbid more, which mmap(2) then says.
inline constexpr uint64_t kUserSpaceStart = kWirePageBytes;

// The number of extents that follow `header`, once CheckHeader has passed it.
inline uint32_t ExtentCount(const transport::DataHeader& header) {
  switch (static_cast<transport::DataKind>(header.kind)) {
    case transport::DataKind::kUnmap:
    case transport::DataKind::kDrop:
    case transport::DataKind::kPages:
      return header.count;
    default:
      return 0;
  }
}

inline FrameFault CheckHeader(const transport::DataHeader& header) {
  if (header.reserved != 0) return FrameFault::kReservedNotZero;
  switch (static_cast<transport::DataKind>(header.kind)) {
    case transport::DataKind::kMap:
      if (header.count != 1) return FrameFault::kBadCount;
      return header.arg == 0 ? FrameFault::kNone : FrameFault::kBadArgument;
    case transport::DataKind::kUnmap:
    case transport::DataKind::kDrop:
      if (header.count == 0 || header.count > transport::kMaxExtentsPerFrame) {
        return FrameFault::kBadCount;
      }
      return header.arg == 0 ? FrameFault::kNone : FrameFault::kBadArgument;
    case transport::DataKind::kPages:
      if (header.count == 0 || header.count > transport::kMaxExtentsPerFrame) {
        return FrameFault::kBadCount;
      }
      if (header.arg == 0 || header.arg > transport::kMaxPayloadBytes ||
          header.arg % kWirePageBytes != 0) {
        return FrameFault::kBadPayload;
      }
      return FrameFault::kNone;
    case transport::DataKind::kRoundEnd:
    case transport::DataKind::kFinal:
      return header.count == 0 ? FrameFault::kNone : FrameFault::kBadCount;
    default:
      return FrameFault::kUnknownKind;
  }
}

inline FrameFault CheckRange(uint64_t start, uint64_t bytes) {
  if (start % kWirePageBytes != 0 || bytes % kWirePageBytes != 0) {
    return FrameFault::kExtentUnaligned;
  }
  if (bytes == 0) return FrameFault::kExtentEmpty;
  if (start < kUserSpaceStart || start >= transport::kUserSpaceEnd ||
      bytes > transport::kUserSpaceEnd - start) {
    return FrameFault::kExtentOutside;
  }
  return FrameFault::kNone;
}

// Checks the extents that follow `header`; `where` (may be null) gets the offending address.
inline FrameFault CheckExtents(const transport::DataHeader& header,
                               const transport::WireExtent* extents, uint64_t* where) {
  uint64_t previous_end = 0;
  uint64_t total = 0;
  for (uint32_t i = 0; i < header.count; ++i) {
    const transport::WireExtent& extent = extents[i];
    FrameFault fault = CheckRange(extent.start, extent.bytes);
    if (fault == FrameFault::kNone && extent.start < previous_end) {
      fault = FrameFault::kExtentDisorder;
    }
    if (fault != FrameFault::kNone) {
      if (where != nullptr) *where = extent.start;
      return fault;
    }
    previous_end = extent.start + extent.bytes;
    total += extent.bytes;  // cannot wrap: disjoint ranges of user space
  }
  if (header.kind == static_cast<uint32_t>(transport::DataKind::kPages) && total != header.arg) {
    return FrameFault::kBadPayload;
  }
  return FrameFault::kNone;
}

inline FrameFault CheckMap(const transport::MapRecord& record) {
  const FrameFault range = CheckRange(record.start, record.bytes);
  if (range != FrameFault::kNone) return range;
  constexpr uint32_t kKnownFlags = transport::kMapShared | transport::kMapFile |
                                   transport::kMapGrowsDown | transport::kMapHugePages |
                                   transport::kMapNoReserve | transport::kMapNoHugePages |
                                   transport::kMapWritable;
  constexpr uint32_t kBothHuge = transport::kMapHugePages | transport::kMapNoHugePages;
  const bool is_file = (record.flags & transport::kMapFile) != 0;
  const bool is_shared = (record.flags & transport::kMapShared) != 0;
  if ((record.flags & ~kKnownFlags) != 0 || (record.flags & kBothHuge) == kBothHuge) {
    return FrameFault::kBadMapFlags;
  }
  // Shared memory without a file cannot be made from here, and a private mapping needs no writing.
  if (is_shared && !is_file) return FrameFault::kBadMapFlags;
  if ((record.flags & transport::kMapWritable) != 0 && !is_shared) return FrameFault::kBadMapFlags;
  if ((record.flags & transport::kMapGrowsDown) != 0 && is_file) return FrameFault::kBadMapFlags;
  if ((record.prot & ~7u) != 0) return FrameFault::kBadProtection;
  if (record.reserved != 0) return FrameFault::kReservedNotZero;
  if (record.file_offset % kWirePageBytes != 0 || record.file_offset > (1ull << 62) ||
      (!is_file && record.file_offset != 0)) {
    return FrameFault::kBadFileOffset;
  }
  if (is_file != (record.path_bytes != 0) || record.path_bytes > transport::kMaxPathBytes) {
    return FrameFault::kBadPath;
  }
  return FrameFault::kNone;
}

inline FrameFault CheckPath(const char* path, uint32_t bytes) {
  if (bytes == 0 || bytes > transport::kMaxPathBytes || path[0] != '/') return FrameFault::kBadPath;
  for (uint32_t i = 0; i < bytes; ++i) {
    if (path[i] == '\0') return FrameFault::kBadPath;
  }
  return FrameFault::kNone;
}

// In words, for the server's message.
inline const char* Describe(FrameFault fault) {
  switch (fault) {
    case FrameFault::kNone:
      return "no fault";
    case FrameFault::kUnknownKind:
      return "unknown kind of frame";
    case FrameFault::kReservedNotZero:
      return "a reserved field is not zero";
    case FrameFault::kBadCount:
      return "a count out of bounds";
    case FrameFault::kBadArgument:
      return "an argument where none belongs";
    case FrameFault::kBadPayload:
      return "a payload that is not the sum of its extents, or out of bounds";
    case FrameFault::kExtentUnaligned:
      return "an extent that is not page-aligned";
    case FrameFault::kExtentEmpty:
      return "an empty extent";
    case FrameFault::kExtentOutside:
      return "an extent outside user space";
    case FrameFault::kExtentDisorder:
      return "extents that are not ascending and disjoint";
    case FrameFault::kBadMapFlags:
      return "unknown or contradictory mapping flags";
    case FrameFault::kBadProtection:
      return "unknown protection bits";
    case FrameFault::kBadFileOffset:
      return "a bad file offset";
    case FrameFault::kBadPath:
      return "a bad path";
  }
  return "unknown fault";
}

}  // namespace predump::restore

#endif  // PREDUMP_RESTORE_LANDING_FRAME_CHECK_H_
