// Which parts of the landing's home block hold memory of the process, staged elsewhere.
//
// Invariant: pieces are ascending, disjoint and inside the home block. Each was made by one
// mmap(2), so each can be moved by one mremap(2). Freestanding, pure.
#ifndef PREDUMP_RESTORE_LANDING_STAGING_H_
#define PREDUMP_RESTORE_LANDING_STAGING_H_

#include <stdint.h>

#include "src/restore/landing/layout.h"

namespace predump::restore {

// A view of LandingShared::staged.
class StagedPieces {
 public:
  explicit StagedPieces(LandingShared* shared) : shared_(shared) {}

  // Forgets [start, start + bytes); pieces that reach across are cut. False: the table is full.
  bool Remove(uint64_t start, uint64_t bytes) {
    const uint64_t end = start + bytes;
    uint64_t kept = 0;
    // At most one piece is cut in two, so one spare place is enough.
    StagedPiece tail = {0, 0};
    for (uint64_t i = 0; i < shared_->staged_count; ++i) {
      const StagedPiece piece = shared_->staged[i];
      const uint64_t piece_end = piece.start + piece.bytes;
      if (piece_end <= start || piece.start >= end) {
        shared_->staged[kept++] = piece;
        continue;
      }
      if (piece.start < start && piece_end > end) {
        shared_->staged[kept++] = {piece.start, start - piece.start};
        tail = {end, piece_end - end};
      } else if (piece.start < start) {
        shared_->staged[kept++] = {piece.start, start - piece.start};
      } else if (piece_end > end) {
        shared_->staged[kept++] = {end, piece_end - end};
      }
    }
    shared_->staged_count = kept;
    return tail.bytes == 0 || Insert(tail.start, tail.bytes);
  }

  // Adds a piece that overlaps no other. False: the table is full.
  bool Insert(uint64_t start, uint64_t bytes) {
    if (shared_->staged_count >= kMaxStagedPieces) return false;
    uint64_t at = shared_->staged_count;
    while (at > 0 && shared_->staged[at - 1].start > start) {
      shared_->staged[at] = shared_->staged[at - 1];
      --at;
    }
    shared_->staged[at] = {start, bytes};
    ++shared_->staged_count;
    return true;
  }

 private:
  LandingShared* shared_;
};

// Where the process's address `address` is now.
inline uint64_t StagedAddress(const LandingShared& shared, uint64_t address) {
  if (address < kHome || address >= kHomeEnd) return address;
  return address - kHome + shared.staging_base;
}

// Walks [start, start + bytes) in pieces that lie wholly inside or wholly outside the home block:
// at most three.
struct HomeSplit {
  struct Part {
    uint64_t start;
    uint64_t bytes;
    bool staged;
  };
  Part parts[3];
  uint32_t count;
};

inline HomeSplit SplitAtHome(uint64_t start, uint64_t bytes) {
  HomeSplit split = {};
  const uint64_t end = start + bytes;
  uint64_t at = start;
  const auto add = [&](uint64_t to, bool staged) {
    if (to > at) {
      split.parts[split.count++] = {at, to - at, staged};
      at = to;
    }
  };
  add(end < kHome ? end : kHome, false);
  if (at >= kHome) add(end < kHomeEnd ? end : kHomeEnd, true);
  add(end, false);
  return split;
}

}  // namespace predump::restore

#endif  // PREDUMP_RESTORE_LANDING_STAGING_H_
