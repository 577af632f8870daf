#include "tests/pagemap/swap.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <string>
#include <vector>

#include "src/base/mapped_region.h"
#include "src/kernel/pagemap_scan.h"

namespace predump::pagemap {

bool HasSwap() {
  std::ifstream swaps("/proc/swaps");
  std::string line;
  std::getline(swaps, line);  // the heading
  return static_cast<bool>(std::getline(swaps, line));
}

bool SwapOut(MemoryActor& actor, base::AddressRange range) {
  const auto pagemap = kernel::PagemapFile::Open(actor.process());
  if (!pagemap.ok()) return false;
  std::vector<uint64_t> entries(range.pages().value());
  auto own = base::MappedRegion::Anonymous(base::PageSize(), /*populate=*/true);
  if (!own.ok()) return false;
  // Pages that are just being written out stay where they are, and so do those that this processor
  // has read in and not yet put on the kernel's lists, which advice about a page of ours makes it
  // do.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (std::chrono::steady_clock::now() < deadline) {
    ::madvise(own->data(), own->size(), MADV_PAGEOUT);
    if (actor.Syscall(SYS_madvise, {range.start().value(), range.size().value(), MADV_PAGEOUT}) !=
        0) {
      return false;
    }
    const auto count = pagemap->ReadEntries(range, entries);
    if (count.ok() && *count == entries.size() &&
        std::all_of(entries.begin(), entries.end(),
                    [](uint64_t entry) { return (entry & kernel::kPagemapSwapped) != 0; })) {
      return true;
    }
  }
  return false;
}

}  // namespace predump::pagemap
