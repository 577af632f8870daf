// How a core file is laid out: which mappings it holds what of, and where in the file that is.
//
// The policy is the kernel's (fs/binfmt_elf.c, core(5)): /proc/PID/coredump_filter, VM_DONTDUMP. It
// differs in one thing: of a private file mapping only the pages that the process has made its own
// are written; debuggers read the others from the file, which NT_FILE names.
// Thread rule: values and pure functions.
#ifndef PREDUMP_CORE_LAYOUT_H_
#define PREDUMP_CORE_LAYOUT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "src/base/units.h"
#include "src/kernel/procfs.h"
#include "src/pagemap/extent.h"

namespace predump::core {

// Bits of /proc/PID/coredump_filter, core(5).
inline constexpr uint64_t kFilterAnonymousPrivate = 1 << 0;
inline constexpr uint64_t kFilterAnonymousShared = 1 << 1;
inline constexpr uint64_t kFilterFilePrivate = 1 << 2;
inline constexpr uint64_t kFilterFileShared = 1 << 3;
inline constexpr uint64_t kFilterElfHeaders = 1 << 4;
inline constexpr uint64_t kFilterHugetlbPrivate = 1 << 5;
inline constexpr uint64_t kFilterHugetlbShared = 1 << 6;

struct Mapping {
  kernel::MapsEntry entry;
  kernel::VmaFlags flags;  // no bit set: not known (it was unmapped before they were read)
};

// What of a mapping the core holds.
enum class Content {
  kNothing,       // described only
  kData,          // pages that hold data; the others read as zeros
  kOwnPages,      // of a private file mapping: pages that are no longer the file's
  kWholeFile,     // all there is of the file, own pages included
  kSharedObject,  // all there is of the memory shared with others, whoever touched it
  kVdso,
};

struct Policy {
  Content content = Content::kNothing;
  // Also the first page of the file, if it is an ELF header: it tells which file this was.
  bool elf_header = false;
};

Policy PolicyOf(const Mapping& mapping, uint64_t filter);

// Gives each mapping its flags. One that `flags` (ascending) divides is cut at the same places, so
// that advice given to one page since does not count for its neighbours.
std::vector<Mapping> WithFlags(const std::vector<kernel::MapsEntry>& entries,
                               const std::vector<kernel::VmaFlags>& flags);

// One PT_LOAD.
struct Segment {
  base::AddressRange range;  // p_vaddr, p_memsz
  uint32_t flags = 0;        // PF_R | PF_W | PF_X
  base::ByteCount in_file;   // p_filesz: so many bytes from its start; pages not taken are zeros
  uint64_t offset = 0;       // p_offset, a multiple of the page size
};

// A mapping, what is taken of it, and whether the rest up to the last page reads as zeros (it does
// in anonymous memory) or is for the debugger to find in the file.
struct Taken {
  Mapping mapping;
  pagemap::ExtentSet pages;
  bool rest_is_zeros = true;
};

class Layout {
 public:
  // `notes` is how many bytes of notes there are. `taken` is ascending.
  static Layout Create(const std::vector<Taken>& taken, base::ByteCount notes);

  const std::vector<Segment>& segments() const { return segments_; }
  // ELF header, program headers and, past 65,534 segments, the section header that tells their
  // number (PN_XNUM). The notes come right behind.
  std::string Headers() const;
  // Bytes of the whole file.
  uint64_t file_size() const { return file_size_; }
  // Where the page at `address` goes, and how many bytes go behind one another from there on.
  // Nothing where no segment has it in the file.
  struct Place {
    uint64_t offset = 0;
    base::ByteCount room;
  };
  std::optional<Place> PlaceOf(base::RemoteAddress address) const;
  // All that segments have in the file.
  const pagemap::ExtentSet& covered() const { return covered_; }

 private:
  bool many() const;
  uint64_t headers_size() const;

  std::vector<Segment> segments_;
  base::ByteCount notes_;
  uint64_t file_size_ = 0;
  pagemap::ExtentSet covered_;
};

}  // namespace predump::core

#endif  // PREDUMP_CORE_LAYOUT_H_
