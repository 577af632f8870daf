#include <array>
#include <cstdint>

#include "src/kernel/bpf/vma_capture.h"

namespace predump::kernel {
namespace {

struct RawFlag {
  int bit;
  VmFlag flag;
};

// Where 6.12 and 6.18 differ both bits are here; the other kernel leaves that bit unused.
constexpr std::array kRawFlags = {
    RawFlag{0, VmFlag::kReadable},
    RawFlag{1, VmFlag::kWritable},
    RawFlag{2, VmFlag::kExecutable},
    RawFlag{3, VmFlag::kShared},
    RawFlag{4, VmFlag::kMayRead},
    RawFlag{5, VmFlag::kMayWrite},
    RawFlag{6, VmFlag::kMayExecute},
    RawFlag{7, VmFlag::kMayShare},
    RawFlag{8, VmFlag::kGrowsDown},
    RawFlag{9, VmFlag::kUffdMissing},
    RawFlag{10, VmFlag::kPurePfn},
    RawFlag{11, VmFlag::kGuard},  // 6.19
    RawFlag{12, VmFlag::kUffdWriteProtect},
    RawFlag{13, VmFlag::kLocked},
    RawFlag{14, VmFlag::kIo},
    RawFlag{15, VmFlag::kSequential},
    RawFlag{16, VmFlag::kRandom},
    RawFlag{17, VmFlag::kDontCopy},
    RawFlag{18, VmFlag::kDontExpand},
    RawFlag{19, VmFlag::kLockOnFault},
    RawFlag{20, VmFlag::kAccounted},
    RawFlag{21, VmFlag::kNoReserve},
    RawFlag{22, VmFlag::kHugetlb},
    RawFlag{23, VmFlag::kSynchronousFault},
    RawFlag{24, VmFlag::kArchitecture},
    RawFlag{25, VmFlag::kWipeOnFork},
    RawFlag{26, VmFlag::kDontDump},
    RawFlag{27, VmFlag::kSoftDirty},
    RawFlag{28, VmFlag::kMixedMap},
    RawFlag{29, VmFlag::kHugePage},
    RawFlag{30, VmFlag::kNoHugePage},
    RawFlag{31, VmFlag::kMergeable},
    RawFlag{37, VmFlag::kShadowStack},
    RawFlag{38, VmFlag::kUffdMinor},  // 6.12
    RawFlag{40, VmFlag::kDroppable},
    RawFlag{41, VmFlag::kUffdMinor},  // 6.18
    RawFlag{42, VmFlag::kSealed},     // 6.18
    RawFlag{63, VmFlag::kSealed},     // 6.12
};

constexpr int kProtectionKeyShift = 32;
constexpr uint64_t kProtectionKeyMask = 0xf;

constexpr uint64_t KnownBits() {
  uint64_t bits = kProtectionKeyMask << kProtectionKeyShift;
  for (const RawFlag& raw : kRawFlags) bits |= 1ull << raw.bit;
  return bits;
}

}  // namespace

VmaFlags FlagsOf(const VmaRecord& vma) {
  VmaFlags flags;
  flags.range = base::AddressRange::FromOrdered(vma.start, vma.end);
  for (const RawFlag& raw : kRawFlags) {
    if ((vma.vm_flags >> raw.bit & 1) != 0) flags.bits |= static_cast<uint64_t>(raw.flag);
  }
  if ((vma.vm_flags & ~KnownBits()) != 0) flags.bits |= static_cast<uint64_t>(VmFlag::kUnknown);
  if (vma.has_policy != 0) flags.bits |= static_cast<uint64_t>(VmFlag::kPolicy);
  flags.protection_key = static_cast<int>(vma.vm_flags >> kProtectionKeyShift & kProtectionKeyMask);
  return flags;
}

}  // namespace predump::kernel
