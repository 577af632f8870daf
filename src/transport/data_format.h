// The data connection, byte for byte. Shared by the source (writer), the tests, and the landing,
// which is freestanding: this header needs no library and allocates nothing.
//
// After the 24-byte preamble {kDataMagic, 16 bytes of token} the source sends frames: a fixed
// 32-byte header, then what its kind says. Everything is little-endian. The landing answers each
// kRoundEnd and kFinal with one header {kAcknowledge, 0, round number, round number}, or with
// kLandingError at any time, after which the stream is dead.
//
// clang-format off
//   kind       count              arg               follows the header
//   kMap       1                  0                 MapRecord, then path_bytes of path (no NUL)
//   kUnmap     number of ranges   0                 count Extents: nothing is mapped there now
//   kDrop      number of ranges   0                 count Extents: contents are gone, zero again
//   kPages     number of extents  payload in bytes  count Extents, then their bytes in order
//   kRoundEnd  0                  round number      nothing; acknowledged when all before it is in memory
//   kFinal     0                  round number      nothing; acknowledged, then the landing stops itself
//                                                   for its tracer
// clang-format on
//
// Invariants a reader enforces: kinds are known; count <= kMaxExtentsPerFrame; extents are page
// aligned, non-empty, inside user space, ascending and disjoint within a frame; the payload equals
// the sum of the extents and is at most kMaxPayloadBytes; path_bytes <= kMaxPathBytes.
#ifndef PREDUMP_TRANSPORT_DATA_FORMAT_H_
#define PREDUMP_TRANSPORT_DATA_FORMAT_H_

#include <stdint.h>

namespace predump::transport {

inline constexpr uint64_t kControlMagic = 0x31304c5443445250;  // "PRDCTL01"
inline constexpr uint64_t kDataMagic = 0x3130544144445250;     // "PRDDAT01"
inline constexpr uint32_t kTokenBytes = 16;

inline constexpr uint32_t kMaxExtentsPerFrame = 1024;
inline constexpr uint64_t kMaxPayloadBytes = 16u << 20;
inline constexpr uint32_t kMaxPathBytes = 4096;
inline constexpr uint64_t kUserSpaceEnd = 0x7ffffffff000;  // x86-64, 4-level tables

enum class DataKind : uint32_t {
  kMap = 1,
  kUnmap = 2,
  kDrop = 3,
  kPages = 4,
  kRoundEnd = 5,
  kFinal = 6,
  kAcknowledge = 7,   // landing to source
  kLandingError = 8,  // landing to source: count = errno, arg = address; the session has failed
};

struct DataHeader {
  uint32_t kind;  // DataKind
  uint32_t count;
  uint64_t arg;
  uint64_t round;
  uint64_t reserved;  // zero
};
static_assert(sizeof(DataHeader) == 32);

// A run of pages: [start, start + bytes).
struct WireExtent {
  uint64_t start;  // page-aligned address
  uint64_t bytes;  // multiple of the page size, > 0
};
static_assert(sizeof(WireExtent) == 16);

enum MapFlags : uint32_t {
  kMapShared = 1u << 0,  // MAP_SHARED of a file; otherwise MAP_PRIVATE
  kMapFile = 1u << 1,    // path follows; otherwise anonymous
  kMapGrowsDown = 1u << 2,
  kMapHugePages = 1u << 3,  // madvise(MADV_HUGEPAGE) before anything is received
  kMapNoReserve = 1u << 4,
  kMapNoHugePages = 1u << 5,
  kMapWritable = 1u << 6,  // shared mappings: open the file for writing too
};

// Replaces whatever was mapped in [start, start + bytes) by a new mapping. Private ones are
// readable and writable until the process is built; then the final protection is set.
struct MapRecord {
  uint64_t start;
  uint64_t bytes;
  uint64_t file_offset;  // bytes
  uint32_t prot;         // PROT_*, as it will be at the end
  uint32_t flags;        // MapFlags
  uint32_t path_bytes;
  uint32_t reserved;  // zero
};
static_assert(sizeof(MapRecord) == 40);

}  // namespace predump::transport

#endif  // PREDUMP_TRANSPORT_DATA_FORMAT_H_
