// Where the landing executable lives, and what it shares with the server that drives it.
//
// The landing holds one block of addresses and nothing else: [kHome, kHome + kHomeBytes). Memory
// that arrives for that block is staged elsewhere and moved home when the block is given up.
// kHome lies between the bottom-up mmap area, which begins at a third of user space
// (0x2aaaaaaaa000), and position-independent executables, which begin at two thirds
// (0x555555554000); top-down mmap, Go's arenas (0xc000000000), ZGC's heaps (0x40000000000) and
// ASan's shadow (below 0x100080000000) are far away too. A collision is still handled, only slower.
//
// Freestanding: no library, no allocation.
#ifndef PREDUMP_RESTORE_LANDING_LAYOUT_H_
#define PREDUMP_RESTORE_LANDING_LAYOUT_H_

#include <stdint.h>

namespace predump::restore {

inline constexpr uint64_t kPageBytes = 4096;

inline constexpr uint64_t kHome = 0x3d0000000000;  // also given to the linker, see CMakeLists.txt
inline constexpr uint64_t kHomeBytes = 256u << 20;
inline constexpr uint64_t kHomeEnd = kHome + kHomeBytes;
// The executable, its data and its stack: [kHome, kVdsoSlot).
inline constexpr uint64_t kVdsoSlot = kHome + (4u << 20);  // vvar and vDSO, back to back
inline constexpr uint64_t kVdsoSlotBytes = 1u << 20;
inline constexpr uint64_t kTrampoline = kHome + (16u << 20);  // shared with the server, to kHomeEnd
inline constexpr uint64_t kTrampolineBytes = kHomeEnd - kTrampoline;

// Staging areas that may be chosen: each is the home block's mirror, a whole number of GiB away, so
// that mremap(2) of what lies there moves page-table entries and not bytes.
inline constexpr uint64_t kStagingCandidates[] = {
    kHome + (1ull << 40), kHome - (1ull << 40), kHome + (8ull << 40),  kHome - (8ull << 40),
    kHome + (4ull << 40), kHome - (4ull << 40), kHome - (32ull << 40), kHome + (32ull << 40),
};

inline constexpr uint32_t kMaxStagedPieces = 2048;

// One staged mapping: it belongs at [start, start + bytes) and is at start + staging offset.
struct StagedPiece {
  uint64_t start;
  uint64_t bytes;
};

// What the landing was doing when it gave up.
enum class LandingFault : uint32_t {
  kNone = 0,
  kEndOfStream,  // the data connection ended before the final mark
  kReceive,      // recvmsg(2) failed; error_number says how
  kFrame,        // a frame broke a rule of data_format.h; frame_defect says which
  kOpen,         // open(2) of `path`
  kMap,          // mmap(2) at `address` (of `path`, if any)
  kUnmap,        // munmap(2)
  kDrop,         // madvise(MADV_DONTNEED)
  kStagingFull,  // too many pieces, or no free staging area
  kSend,         // an acknowledgement could not be sent
};

inline constexpr uint32_t kLandingPathBytes = 4096;

// At the start of the trampoline. The server writes the first part before the landing runs, the
// landing the second; the server reads that once the landing has stopped or died.
struct LandingShared {
  int32_t data_socket;
  int32_t notify_fd;  // one byte is written here before the landing stops for its tracer

  uint32_t fault;  // LandingFault
  int32_t error_number;
  uint32_t frame_defect;  // transport::DataDefect
  uint32_t final_reached;
  uint64_t address;
  uint64_t final_round;
  uint64_t payload_bytes;
  uint64_t staging_base;  // 0: nothing was ever staged
  uint64_t staged_count;
  StagedPiece staged[kMaxStagedPieces];  // ascending, disjoint
  char path[kLandingPathBytes + 1];      // NUL-terminated
};

inline constexpr uint64_t kLandingSharedBytes = 64u << 10;  // set aside for it
static_assert(sizeof(LandingShared) <= kLandingSharedBytes);

}  // namespace predump::restore

#endif  // PREDUMP_RESTORE_LANDING_LAYOUT_H_
