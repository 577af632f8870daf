// /proc/PID/maps and the VmFlags lines of /proc/PID/smaps.
//
// Thread rule: values and free functions. Parse... functions are pure and take the file's text.
#ifndef PREDUMP_KERNEL_PROCFS_MAPS_H_
#define PREDUMP_KERNEL_PROCFS_MAPS_H_

#include <sys/mman.h>
#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "src/base/units.h"
#include "src/kernel/process.h"

namespace predump::kernel {

// One line of maps.
struct MapsEntry {
  base::AddressRange range;
  int prot = PROT_NONE;      // PROT_READ | PROT_WRITE | PROT_EXEC
  bool shared = false;       // MAP_SHARED
  uint64_t file_offset = 0;  // bytes
  dev_t device = 0;
  uint64_t inode = 0;  // 0: no file behind it
  // The path with \012 turned into newlines and " (deleted)" cut off, or a name such as "[heap]",
  // "[anon:name]"; empty for nameless anonymous memory.
  std::string path;
  bool deleted = false;

  bool IsFile() const { return inode != 0; }
  // [vdso], [vvar], [vvar_vclock], [vsyscall] and the like: provided by the kernel.
  bool IsKernelProvided() const;
  friend bool operator==(const MapsEntry&, const MapsEntry&) = default;
};

// Ascending, as the kernel lists them. DataLoss on a line that is not one of maps.
absl::StatusOr<std::vector<MapsEntry>> ParseMaps(absl::string_view text);
// Not atomic while the process runs: a mapping that changes during the read may be seen in part.
absl::StatusOr<std::vector<MapsEntry>> ReadMaps(const ProcessHandle& process);

// The two-letter VmFlags of smaps (Documentation/filesystems/proc.rst), one bit each.
enum class VmFlag : uint64_t {
  kReadable = 1ull << 0,           // rd
  kWritable = 1ull << 1,           // wr
  kExecutable = 1ull << 2,         // ex
  kShared = 1ull << 3,             // sh
  kMayRead = 1ull << 4,            // mr
  kMayWrite = 1ull << 5,           // mw
  kMayExecute = 1ull << 6,         // me
  kMayShare = 1ull << 7,           // ms
  kGrowsDown = 1ull << 8,          // gd
  kPurePfn = 1ull << 9,            // pf
  kLocked = 1ull << 10,            // lo
  kIo = 1ull << 11,                // io
  kSequential = 1ull << 12,        // sr
  kRandom = 1ull << 13,            // rr
  kDontCopy = 1ull << 14,          // dc
  kDontExpand = 1ull << 15,        // de
  kLockOnFault = 1ull << 16,       // lf
  kAccounted = 1ull << 17,         // ac
  kNoReserve = 1ull << 18,         // nr
  kHugetlb = 1ull << 19,           // ht
  kSynchronousFault = 1ull << 20,  // sf
  kWipeOnFork = 1ull << 21,        // wf
  kDontDump = 1ull << 22,          // dd
  kSoftDirty = 1ull << 23,         // sd
  kMixedMap = 1ull << 24,          // mm
  kHugePage = 1ull << 25,          // hg
  kNoHugePage = 1ull << 26,        // nh
  kMergeable = 1ull << 27,         // mg
  kUffdMissing = 1ull << 28,       // um
  kUffdWriteProtect = 1ull << 29,  // uw
  kUffdMinor = 1ull << 30,         // ui
  kShadowStack = 1ull << 31,       // ss
  kSealed = 1ull << 32,            // sl
  kDroppable = 1ull << 33,         // dp
  kGuard = 1ull << 34,             // gu
  kArchitecture = 1ull << 35,      // ar
  kPolicy = 1ull << 62,            // mbind(2); not among smaps' letters
  kUnknown = 1ull << 63,           // letters this table does not know
};

struct VmaFlags {
  base::AddressRange range;
  uint64_t bits = 0;       // VmFlag values
  int protection_key = 0;  // ProtectionKey line, 0 where absent

  bool Has(VmFlag flag) const { return (bits & static_cast<uint64_t>(flag)) != 0; }
  friend bool operator==(const VmaFlags&, const VmaFlags&) = default;
};

absl::StatusOr<std::vector<VmaFlags>> ParseSmapsFlags(absl::string_view text);
// Walks every page table: milliseconds per GiB. The fallback where BPF is not to be had.
absl::StatusOr<std::vector<VmaFlags>> ReadSmapsFlags(const ProcessHandle& process);

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_PROCFS_MAPS_H_
