#include "src/pagemap/vma.h"

#include <sys/mman.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <array>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/kernel/pagemap_scan.h"

namespace predump::pagemap {
namespace {

using kernel::VmFlag;

struct FlagReason {
  VmFlag flag;
  const char* why;
};

// The more telling reason first: hugetlb and device mappings carry several of these.
constexpr std::array kUnsupportedFlags = {
    FlagReason{VmFlag::kHugetlb, "hugetlb memory"},
    FlagReason{VmFlag::kIo, "device memory (VM_IO)"},
    FlagReason{VmFlag::kPurePfn, "page frames mapped by a driver (VM_PFNMAP)"},
    FlagReason{VmFlag::kMixedMap, "pages mapped by a driver (VM_MIXEDMAP)"},
    FlagReason{VmFlag::kArchitecture, "mapping with architecture-specific attributes"},
    FlagReason{VmFlag::kSynchronousFault, "persistent memory (MAP_SYNC)"},
    FlagReason{VmFlag::kShadowStack, "shadow stack"},
    FlagReason{VmFlag::kSealed, "sealed mapping (mseal)"},
    FlagReason{VmFlag::kGuard, "guard regions (MADV_GUARD_INSTALL)"},
    FlagReason{VmFlag::kDroppable, "droppable memory (MAP_DROPPABLE)"},
    FlagReason{VmFlag::kUnknown, "mapping with a flag this program does not know"},
};

// Empty where nothing speaks against it.
std::string WhyFlagsUnsupported(const kernel::VmaFlags& flags) {
  for (const FlagReason& reason : kUnsupportedFlags) {
    if (flags.Has(reason.flag)) return reason.why;
  }
  if (flags.protection_key != 0) {
    return absl::StrCat("protection key ", flags.protection_key);
  }
  return "";
}

// Private mappings of /dev/zero are anonymous memory in all but their name (drivers/char/mem.c).
bool IsPrivateZeroDevice(const kernel::MapsEntry& entry) {
  return !entry.shared && entry.path == "/dev/zero";
}

bool IsDevicePath(const std::string& path) {
  return absl::StartsWith(path, "/dev/") && !absl::StartsWith(path, "/dev/shm/") &&
         path != "/dev/zero";
}

std::string WhyNameUnsupported(const kernel::MapsEntry& entry) {
  const std::string& path = entry.path;
  if (path == "/[aio]") return "ring of asynchronous I/O (io_setup)";
  if (path == "[uprobes]") return "uprobes are set in this process";
  if (absl::StartsWith(path, "anon_inode:")) return absl::StrCat("mapping of ", path);
  if (absl::StartsWith(path, "socket:")) return "mapping of a socket";
  if (absl::StartsWith(path, "/dev/hugepages/") || path == "/anon_hugepage") {
    return "hugetlb memory";
  }
  if (IsDevicePath(path)) return absl::StrCat("device ", path);
  // The inode of a segment is its id, which may be 0: then maps looks as if there were no file.
  if ((entry.deleted || !entry.IsFile()) && absl::StartsWith(path, "/SYSV")) {
    return "System V shared memory";
  }
  if (entry.deleted && absl::StartsWith(path, "/memfd:")) return "memory file (memfd_create)";
  if (entry.shared && (path == "/dev/zero" || absl::StartsWith(path, "[anon_shmem:"))) {
    return "shared anonymous memory";
  }
  if (entry.deleted) return absl::StrCat("deleted file ", path);
  return "";
}

VmaKind KernelProvidedKind(const std::string& path) {
  if (path == "[vdso]") return VmaKind::kVdso;
  if (path == "[vvar]" || path == "[vvar_vclock]") return VmaKind::kVvar;
  if (path == "[vsyscall]") return VmaKind::kVsyscall;
  return VmaKind::kUnsupported;
}

void Refuse(Vma& vma, std::string why) {
  vma.kind = VmaKind::kUnsupported;
  vma.why_unsupported = std::move(why);
}

}  // namespace

void RefuseGuarded(VmaList& vmas, const base::AddressRange& range) {
  for (Vma& vma : vmas.mutable_vmas()) {
    if (vma.range.start() < range.end() && range.start() < vma.range.end()) {
      Refuse(vma, "guard regions (MADV_GUARD_INSTALL)");
    }
  }
}

absl::StatusOr<std::vector<base::AddressRange>> RefuseGuardRegions(
    const kernel::ProcessHandle& process, VmaList& vmas) {
  std::vector<base::AddressRange> guarded;
  PREDUMP_ASSIGN_OR_RETURN(const kernel::PagemapFile pagemap, kernel::PagemapFile::Open(process));
  for (Vma& vma : vmas.mutable_vmas()) {
    if (!vma.is_private_memory() && vma.kind != VmaKind::kFileShared) continue;
    kernel::PageRegion first;
    const auto scan = pagemap.Scan({.range = vma.range,
                                    .category_mask = kernel::kPageIsGuard,
                                    .return_mask = kernel::kPageIsGuard,
                                    .max_pages = 1},
                                   std::span(&first, 1));
    if (scan.ok() && scan->count > 0) {
      guarded.push_back(vma.range);
      Refuse(vma, "guard regions (MADV_GUARD_INSTALL)");
    } else if (base::IsTargetExited(scan.status())) {
      return scan.status();
    } else if (!scan.ok()) {
      break;
    }
  }
  return guarded;
}

Vma ClassifyMapping(const kernel::MapsEntry& entry, const kernel::VmaFlags& flags) {
  Vma vma;
  vma.range = entry.range;
  vma.prot = static_cast<uint32_t>(entry.prot);
  vma.file_offset_bytes = entry.file_offset;
  vma.device = entry.device;
  vma.inode = entry.inode;
  vma.path = entry.path;
  vma.deleted = entry.deleted;
  vma.flags = flags;
  vma.grows_down = flags.Has(VmFlag::kGrowsDown) || entry.path == "[stack]";

  vma.kind = KernelProvidedKind(entry.path);
  if (vma.kind != VmaKind::kUnsupported) return vma;  // their flags are the kernel's business
  std::string why = WhyNameUnsupported(entry);
  if (why.empty()) why = WhyFlagsUnsupported(flags);
  if (!why.empty()) {
    Refuse(vma, std::move(why));
  } else if (IsPrivateZeroDevice(entry)) {
    vma.kind = VmaKind::kAnonymousPrivate;
    vma.file_offset_bytes = 0;
  } else if (entry.IsFile()) {
    vma.kind = entry.shared ? VmaKind::kFileShared : VmaKind::kFilePrivate;
  } else if (entry.shared) {
    Refuse(vma, "shared memory of an unknown kind");
  } else {
    vma.kind = VmaKind::kAnonymousPrivate;
  }
  return vma;
}

absl::StatusOr<VmaList> VmaList::Read(const kernel::ProcessHandle& process, bool with_flags) {
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<kernel::MapsEntry> maps, kernel::ReadMaps(process));
  std::vector<Vma> vmas;
  vmas.reserve(maps.size());
  for (const kernel::MapsEntry& entry : maps) vmas.push_back(ClassifyMapping(entry, {}));
  VmaList list(std::move(vmas));
  if (with_flags) {
    PREDUMP_ASSIGN_OR_RETURN(const std::vector<kernel::VmaFlags> flags,
                             kernel::ReadSmapsFlags(process));
    OverlayFlags(list, flags);
    PREDUMP_RETURN_IF_ERROR(RefuseGuardRegions(process, list).status());
  }
  return list;
}

const Vma* VmaList::Find(base::RemoteAddress address) const {
  const auto it = std::partition_point(vmas_.begin(), vmas_.end(),
                                       [&](const Vma& vma) { return vma.range.end() <= address; });
  return it != vmas_.end() && it->range.Contains(address) ? &*it : nullptr;
}

void OverlayFlags(VmaList& vmas, std::span<const kernel::VmaFlags> flags) {
  auto entry = flags.begin();
  for (Vma& vma : vmas.mutable_vmas()) {
    while (entry != flags.end() && entry->range.end() <= vma.range.start()) ++entry;
    kernel::VmaFlags merged;
    for (auto e = entry; e != flags.end() && e->range.start() < vma.range.end(); ++e) {
      merged.bits |= e->bits;
      merged.protection_key = std::max(merged.protection_key, e->protection_key);
    }
    if (merged.bits == 0) continue;
    merged.range = vma.range;
    vma.flags = merged;
    vma.grows_down = merged.Has(VmFlag::kGrowsDown) || vma.path == "[stack]";
    const bool movable = vma.is_private_memory() || vma.kind == VmaKind::kFileShared;
    if (!movable) continue;
    if (std::string why = WhyFlagsUnsupported(merged); !why.empty()) Refuse(vma, std::move(why));
  }
}

}  // namespace predump::pagemap
