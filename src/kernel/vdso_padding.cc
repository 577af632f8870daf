#include "src/kernel/vdso_padding.h"

#include <dirent.h>
#include <elf.h>
#include <linux/kcmp.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/kernel/procfs_task.h"

namespace predump::kernel {
namespace {

constexpr uint64_t kAlignment = 64;
constexpr uint64_t kLowestAddress = 1ull << 20;  // above vm.mmap_min_addr
constexpr uint64_t kUserEnd = 0x7ffffffff000;    // 47-bit address space less the guard page
constexpr uint64_t kSmallestHole = 1ull << 20;

template <typename T>
bool Load(std::span<const std::byte> image, uint64_t offset, T* out) {
  if (offset > image.size() || sizeof(T) > image.size() - offset) return false;
  memcpy(out, image.data() + offset, sizeof(T));
  return true;
}

// A process that shares the memory of `process` and may be inside the padding.
std::optional<pid_t> TaskInside(const ProcessHandle& process, base::AddressRange padding) {
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir("/proc"), ::closedir);
  if (directory == nullptr) return std::nullopt;
  while (const dirent* entry = ::readdir(directory.get())) {
    pid_t pid = 0;
    if (!absl::SimpleAtoi(entry->d_name, &pid) || pid == process.pid()) continue;
    if (::syscall(SYS_kcmp, process.pid(), pid, KCMP_VM, 0ul, 0ul) != 0) continue;
    const absl::StatusOr<ProcessHandle> other = ProcessHandle::Open(pid);
    if (!other.ok()) continue;
    const absl::StatusOr<SyscallState> state = ReadThreadSyscall(*other, pid);
    if (!state.ok()) continue;
    // A child of the application's vfork(2) waits elsewhere.
    const base::RemoteAddress at(state->instruction_pointer);
    if (state->running || padding.Contains(at)) return pid;
  }
  return std::nullopt;
}

}  // namespace

absl::StatusOr<size_t> VdsoImageEnd(std::span<const std::byte> image) {
  Elf64_Ehdr header;
  if (!Load(image, 0, &header) || memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) {
    return absl::DataLossError("the vDSO is not an ELF image");
  }
  if (header.e_ident[EI_CLASS] != ELFCLASS64) {
    return absl::UnimplementedError("the vDSO is not a 64-bit one: not an x86-64 process");
  }
  uint64_t end = std::max<uint64_t>(header.e_phoff + uint64_t{header.e_phnum} * sizeof(Elf64_Phdr),
                                    header.e_shoff + uint64_t{header.e_shnum} * sizeof(Elf64_Shdr));
  for (uint64_t i = 0; i < header.e_shnum; ++i) {
    Elf64_Shdr section;
    if (!Load(image, header.e_shoff + i * sizeof section, &section)) {
      return absl::DataLossError("the vDSO's section table lies outside of it");
    }
    if (section.sh_type != SHT_NOBITS) end = std::max(end, section.sh_offset + section.sh_size);
  }
  for (uint64_t i = 0; i < header.e_phnum; ++i) {
    Elf64_Phdr segment;
    if (!Load(image, header.e_phoff + i * sizeof segment, &segment)) {
      return absl::DataLossError("the vDSO's program headers lie outside of it");
    }
    end = std::max(end, segment.p_offset + std::max(segment.p_filesz, segment.p_memsz));
  }
  if (end > image.size()) return absl::DataLossError("the vDSO's image is larger than its mapping");
  return std::min<uint64_t>((end + kAlignment - 1) / kAlignment * kAlignment, image.size());
}

absl::StatusOr<base::AddressRange> FindVdsoPadding(const std::vector<MapsEntry>& maps,
                                                   const ProcessMemory& memory) {
  const auto vdso = std::find_if(maps.begin(), maps.end(),
                                 [](const MapsEntry& entry) { return entry.path == "[vdso]"; });
  if (vdso == maps.end()) return absl::UnimplementedError("the process has no vDSO");
  std::vector<std::byte> image(vdso->range.size().value());
  PREDUMP_RETURN_IF_ERROR(memory.ReadExactly(vdso->range.start(), image));
  PREDUMP_ASSIGN_OR_RETURN(const size_t end, VdsoImageEnd(image));
  const std::span<const std::byte> padding = std::span(image).subspan(end);
  const auto first =
      std::find_if(padding.begin(), padding.end(), [](std::byte b) { return b != std::byte{0}; });
  // Programs lie at the beginning or at the end, and begin with the mark either way.
  const std::span<const std::byte> used(first, padding.end());
  const bool ours = used.size() >= sizeof kPaddingMagic &&
                    memcmp(used.data(), kPaddingMagic, sizeof kPaddingMagic) == 0;
  if (!used.empty() && !ours) {
    return absl::FailedPreconditionError("the padding of the vDSO holds something");
  }
  return base::AddressRange::FromOrdered(vdso->range.start().value() + end,
                                         vdso->range.end().value());
}

absl::Status AwaitLeftTasks(const ProcessHandle& process, base::AddressRange padding,
                            const ProcessMemory& memory, int64_t deadline_ns) {
  char mark[sizeof kPaddingMagic];
  PREDUMP_RETURN_IF_ERROR(
      memory.ReadExactly(padding.start(), std::as_writable_bytes(std::span(mark))));
  if (memcmp(mark, kPaddingMagic, sizeof mark) != 0) return absl::OkStatus();
  for (;;) {
    const std::optional<pid_t> left = TaskInside(process, padding);
    if (!left.has_value()) return absl::OkStatus();
    if (base::MonotonicNanoseconds() >= deadline_ns) {
      return absl::FailedPreconditionError(absl::StrCat("task ", *left, ", made in process ",
                                                        process.pid(),
                                                        " by another predump, has not ended"));
    }
    PREDUMP_RETURN_IF_ERROR(process.WaitForExit(absl::Milliseconds(1)));
  }
}

absl::StatusOr<base::RemoteAddress> FindRemotePage(const std::vector<MapsEntry>& maps) {
  uint64_t hole_start = kLowestAddress;
  uint64_t best_start = 0;
  uint64_t best_size = 0;
  const auto consider = [&](uint64_t hole_end) {
    if (hole_end > hole_start && hole_end - hole_start > best_size) {
      best_start = hole_start;
      best_size = hole_end - hole_start;
    }
  };
  for (const MapsEntry& entry : maps) {
    consider(std::min(entry.range.start().value(), kUserEnd));
    hole_start = std::max(hole_start, entry.range.end().value());
  }
  consider(kUserEnd);
  if (best_size < kSmallestHole) {
    return absl::ResourceExhaustedError("no free page far from every mapping");
  }
  const uint64_t middle = best_start + best_size / 2;
  return base::RemoteAddress(middle / base::PageSize() * base::PageSize());
}

}  // namespace predump::kernel
