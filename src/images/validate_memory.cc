// The address space.
#include <sys/mman.h>

#include <cstddef>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_format.h"
#include "src/base/errors.h"
#include "src/images/image_constants.h"
#include "src/images/state_validation_internal.h"

namespace predump::images::internal {
namespace {

constexpr uint64_t kVsyscallStart = 0xffffffffff600000;
constexpr uint32_t kKnownMapFlags =
    MAP_SHARED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_LOCKED | MAP_NORESERVE;
constexpr uint64_t kKnownAdvice = (uint64_t{1} << MADV_SEQUENTIAL) | (uint64_t{1} << MADV_RANDOM) |
                                  (uint64_t{1} << MADV_DONTFORK) | (uint64_t{1} << MADV_MERGEABLE) |
                                  (uint64_t{1} << MADV_HUGEPAGE) |
                                  (uint64_t{1} << MADV_NOHUGEPAGE) |
                                  (uint64_t{1} << MADV_DONTDUMP) | (uint64_t{1} << MADV_WIPEONFORK);
constexpr size_t kMaxAnonymousName = 79;
constexpr int kMaxAuxvWords = 128;

absl::Status ValidateMapping(const criu::vma_entry& vma, const FileIndex& files) {
  const std::string where = absl::StrFormat("mapping %x-%x", vma.start(), vma.end());
  if (vma.start() % kPageBytes != 0 || vma.end() % kPageBytes != 0 || vma.start() >= vma.end()) {
    return Bad(where, ": bounds");
  }
  const bool vsyscall = (vma.status() & kVmaVsyscall) != 0;
  if (vsyscall ? vma.start() != kVsyscallStart : vma.end() > kUserSpaceEnd) {
    return Bad(where, ": outside user space");
  }
  if ((vma.prot() & ~uint32_t{PROT_READ | PROT_WRITE | PROT_EXEC}) != 0)
    return Bad(where, ": prot");
  if ((vma.flags() & ~kKnownMapFlags) != 0) return Bad(where, ": flags");
  if ((vma.madv() & ~kKnownAdvice) != 0) return Bad(where, ": advice");
  if (vma.pgoff() % kPageBytes != 0 || vma.pgoff() > INT64_MAX - (vma.end() - vma.start())) {
    return Bad(where, ": file offset");
  }
  const bool shared = (vma.flags() & MAP_SHARED) != 0;
  if (shared == ((vma.flags() & MAP_PRIVATE) != 0))
    return Bad(where, ": neither private nor shared");
  switch (vma.status() & ~uint32_t{kVmaHeap}) {
    case kVmaRegular | kVmaAnonymousPrivate:
      if (shared || (vma.flags() & MAP_ANONYMOUS) == 0) return Bad(where, ": not anonymous");
      return absl::OkStatus();
    case kVmaRegular | kVmaFilePrivate:
    case kVmaRegular | kVmaFileShared:
      if (shared != ((vma.status() & kVmaFileShared) != 0)) return Bad(where, ": sharing");
      if (vma.shmid() > UINT32_MAX ||
          files.FindRegular(static_cast<uint32_t>(vma.shmid())) == nullptr) {
        return Bad(where, ": file ", vma.shmid(), " is not in the state");
      }
      if (vma.fdflags() > 2) return Bad(where, ": open flags");
      return absl::OkStatus();
    case kVmaRegular | kVmaAnonymousPrivate | kVmaVvar:
    case kVmaRegular | kVmaVdso:
    case kVmaRegular | kVmaAnonymousPrivate | kVmaVdso:
    case kVmaVsyscall:
    case kVmaVsyscall | kVmaAnonymousPrivate:
      return absl::OkStatus();
    default:
      return Bad(where, ": kind ", vma.status());
  }
}

absl::Status ValidateAddresses(const criu::mm_entry& mm) {
  const auto ordered = [](uint64_t start, uint64_t end) {
    return start <= end && end < kUserSpaceEnd;
  };
  if (!ordered(mm.mm_start_code(), mm.mm_end_code()) ||
      !ordered(mm.mm_start_data(), mm.mm_end_data()) || !ordered(mm.mm_start_brk(), mm.mm_brk()) ||
      !ordered(mm.mm_arg_start(), mm.mm_arg_end()) ||
      !ordered(mm.mm_env_start(), mm.mm_env_end()) || mm.mm_start_stack() >= kUserSpaceEnd) {
    return Bad("addresses of code, data, heap, stack or arguments");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateMemory(const proto::ProcessState& state, const FileIndex& files,
                            const StateLimits& limits) {
  if (!state.has_mm()) return Bad("no address space");
  const criu::mm_entry& mm = state.mm();
  if (mm.vmas_size() == 0 || mm.vmas_size() > limits.max_vmas) {
    return Bad(mm.vmas_size(), " mappings");
  }
  absl::flat_hash_set<uint64_t> starts;
  uint64_t previous_end = 0;
  for (const auto& vma : mm.vmas()) {
    PREDUMP_RETURN_IF_ERROR(ValidateMapping(vma, files));
    if (vma.start() < previous_end) return Bad("mappings overlap or are out of order");
    previous_end = vma.end();
    starts.insert(vma.start());
  }
  PREDUMP_RETURN_IF_ERROR(ValidateAddresses(mm));
  if (files.FindRegular(mm.exe_file_id()) == nullptr) return Bad("executable");
  if (mm.mm_saved_auxv_size() > kMaxSavedAuxvWords || state.extra().auxv_size() > kMaxAuxvWords ||
      mm.aios_size() != 0) {
    return Bad("auxiliary vector or AIO rings");
  }
  for (const auto& extra : state.extra().vmas()) {
    if (!starts.contains(extra.start())) return Bad("an extra of a mapping that is not there");
    if (extra.anonymous_name().size() > kMaxAnonymousName ||
        extra.anonymous_name().find('\0') != std::string::npos) {
      return Bad("name of a mapping");
    }
  }
  return absl::OkStatus();
}

}  // namespace predump::images::internal
