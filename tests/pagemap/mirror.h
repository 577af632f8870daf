// A model of the landing: what a target would hold after the rounds so far.
//
// It knows nothing of how pages were found: it is told the layout steps, the ranges to drop and the
// bytes, and at the end it is compared with the process page by page, through pagemap entries and
// /proc/PID/mem, neither of which the trackers and sources under test rely on alone.
#ifndef PREDUMP_TESTS_PAGEMAP_MIRROR_H_
#define PREDUMP_TESTS_PAGEMAP_MIRROR_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "src/kernel/process.h"
#include "src/kernel/userfaultfd.h"
#include "src/pagemap/dirty_tracker.h"
#include "src/pagemap/layout.h"
#include "src/pagemap/page_source.h"
#include "src/pagemap/vma.h"

namespace predump::pagemap {

class Mirror {
 public:
  void Apply(const std::vector<LayoutOp>& ops);
  void Drop(const ExtentSet& ranges);
  void Store(std::span<const Extent> extents, std::span<const std::byte> bytes);

  bool Holds(uint64_t page) const { return pages_.count(page) != 0; }
  size_t pages() const { return pages_.size(); }

  // Addresses of private pages that a landing would show with other contents than `process` has.
  std::vector<uint64_t> Differences(const kernel::ProcessHandle& process,
                                    const VmaList& vmas) const;

 private:
  std::vector<std::byte> PageOf(const kernel::ProcessHandle& process, const Vma& vma,
                                uint64_t page) const;

  std::map<uint64_t, std::vector<std::byte>> pages_;
};

class MemoryActor;

// Drives tracker and source round by round into a Mirror, as a session would.
class Mover {
 public:
  Mover(MemoryActor& actor, DirtyTracker& tracker, PageSource& source);

  // What one round did.
  struct Round {
    DirtySet dirty;
    uint64_t pages_sent = 0;
  };
  // `between` runs after the layout was read and before the scan, or, where the tracker needs a
  // freeze for both, before that.
  Round ScanAndSend(const std::function<void()>& between = {});
  // Whether layouts are read with the flags of the mappings (not by default).
  void ReadFlags(bool with_flags) { with_flags_ = with_flags; }

  // Freezes, scans for the last time, sends, compares and thaws. Empty is good.
  std::vector<uint64_t> Finish();

  const Mirror& mirror() const { return mirror_; }
  const VmaList& layout() const { return layout_; }

 private:
  uint64_t Send(const VmaList& vmas, const DirtySet& dirty);

  MemoryActor& actor_;
  const kernel::ProcessHandle& process_;
  DirtyTracker& tracker_;
  PageSource& source_;
  bool with_flags_ = false;
  VmaList layout_;
  Mirror mirror_;
};

// A userfaultfd of the child, made by itself and taken over, as the setup does from outside.
kernel::Userfaultfd UserfaultfdOf(MemoryActor& actor);

}  // namespace predump::pagemap

#endif  // PREDUMP_TESTS_PAGEMAP_MIRROR_H_
