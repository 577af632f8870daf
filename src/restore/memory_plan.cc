#include "src/restore/memory_plan.h"

#include <fcntl.h>
#include <linux/prctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstddef>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "src/base/errors.h"
#include "src/images/image_constants.h"
#include "src/kernel/process_memory.h"
#include "src/restore/landing/staging.h"
#include "src/restore/mapping_join.h"

namespace predump::restore::internal {
namespace {

bool Overlap(uint64_t a, uint64_t a_bytes, uint64_t b, uint64_t b_bytes) {
  return a < b + b_bytes && b < a + a_bytes;
}

bool IsKernelProvided(const criu::vma_entry& vma) {
  return (vma.status() & (images::kVmaVdso | images::kVmaVvar | images::kVmaVsyscall)) != 0;
}

std::string RangeText(const criu::vma_entry& vma) {
  return absl::StrFormat("%x-%x", vma.start(), vma.end());
}

struct KernelRange {
  uint64_t start = 0;
  uint64_t bytes = 0;
};

// The one range of the state's mappings with `status_bit`, neighbours joined; empty without any.
absl::StatusOr<KernelRange> JoinedRange(const criu::mm_entry& mm, uint32_t status_bit,
                                        const char* name) {
  KernelRange range;
  for (const auto& vma : mm.vmas()) {
    if ((vma.status() & status_bit) == 0) continue;
    if (range.bytes == 0) {
      range = {vma.start(), vma.end() - vma.start()};
    } else if (range.start + range.bytes == vma.start()) {
      range.bytes += vma.end() - vma.start();
    } else {
      return absl::FailedPreconditionError(absl::StrCat("the process's ", name, " is in pieces"));
    }
  }
  return range;
}

// Where a `syscall` instruction is in the vDSO at `start` of the landing, as an offset.
absl::StatusOr<uint64_t> FindSyscall(const kernel::ProcessHandle& process, uint64_t start,
                                     uint64_t bytes) {
  std::vector<std::byte> text(bytes);
  PREDUMP_RETURN_IF_ERROR(
      kernel::ReadProcessMemoryExactly(process, base::RemoteAddress(start), text));
  for (size_t i = 0; i + 1 < text.size(); ++i) {
    if (text[i] == std::byte{0x0f} && text[i + 1] == std::byte{0x05}) return i;
  }
  return absl::UnimplementedError("this kernel's vDSO has no system call instruction");
}

}  // namespace

MemoryPlan::MemoryPlan(LandingProcess& process, const proto::ProcessState& state,
                       const images::FileIndex& files)
    : process_(process), state_(state), files_(files) {}

bool MemoryPlan::Occupied(uint64_t start, uint64_t bytes) const {
  if (Overlap(start, bytes, kHome, kHomeBytes)) return true;
  const uint64_t staging = process_.trampoline.shared().staging_base;
  if (staging != 0 && Overlap(start, bytes, staging, kHomeBytes)) return true;
  const uint64_t trampoline = process_.trampoline.remote().value();
  if (Overlap(start, bytes, trampoline, kTrampolineBytes)) return true;
  const auto& vmas = state_.mm().vmas();
  const auto first = std::partition_point(
      vmas.begin(), vmas.end(), [&](const criu::vma_entry& vma) { return vma.end() <= start; });
  return first != vmas.end() && first->start() < start + bytes;
}

absl::StatusOr<uint64_t> MemoryPlan::FindFree(uint64_t bytes) const {
  constexpr uint64_t kStep = 1ull << 32;
  for (uint64_t at = kHome + kStep; at + bytes < images::kUserSpaceEnd; at += kStep) {
    if (!Occupied(at, bytes)) return at;
  }
  for (uint64_t at = kStep; at < kHome; at += kStep) {
    if (!Occupied(at, bytes)) return at;
  }
  return absl::ResourceExhaustedError(
      absl::StrCat("the process leaves no room for ", bytes, " bytes of the restore's own"));
}

absl::Status MemoryPlan::Prepare() {
  PREDUMP_RETURN_IF_ERROR(PlaceKernelMappings());
  return MoveTrampoline();
}

absl::Status MemoryPlan::JoinMappings() const {
  return internal::JoinMappings(process_, state_,
                                [this](uint64_t bytes) { return FindFree(bytes); });
}

absl::Status MemoryPlan::PlaceKernelMappings() {
  PREDUMP_ASSIGN_OR_RETURN(const KernelRange vdso,
                           JoinedRange(state_.mm(), images::kVmaVdso, "vDSO"));
  PREDUMP_ASSIGN_OR_RETURN(const KernelRange vvar,
                           JoinedRange(state_.mm(), images::kVmaVvar, "vvar"));
  uint64_t vvar_bytes = 0;
  bool detour = process_.trampoline.shared().staged_count != 0;
  const auto add = [&](const KernelMapping& from, uint64_t to) {
    kernel_moves_.push_back({from, to});
    // In the way of what is still in use, or of itself.
    detour = detour || Overlap(to, from.bytes, kHome, kHomeBytes) ||
             Overlap(to, from.bytes, process_.trampoline.shared().staging_base, kHomeBytes);
  };
  for (const KernelMapping& mapping : process_.kernel_mappings) {
    if (mapping.name == "[vdso]") {
      if (mapping.bytes != vdso.bytes) {
        return absl::FailedPreconditionError(absl::StrCat(
            "this kernel's vDSO has ", mapping.bytes, " bytes, the process's has ", vdso.bytes));
      }
      add(mapping, vdso.start);
      PREDUMP_ASSIGN_OR_RETURN(const uint64_t offset,
                               FindSyscall(process_.handle, mapping.start, mapping.bytes));
      process_.vdso_gate = base::RemoteAddress(vdso.start + offset);
    } else {
      add(mapping, vvar.start + vvar_bytes);
      vvar_bytes += mapping.bytes;
    }
  }
  if (vvar_bytes != vvar.bytes) {
    return absl::FailedPreconditionError(absl::StrCat("this kernel's vvar has ", vvar_bytes,
                                                      " bytes, the process's has ", vvar.bytes));
  }
  if (process_.vdso_gate.value() == 0) {
    return absl::FailedPreconditionError("this kernel gave the landing no vDSO");
  }
  if (detour) {
    PREDUMP_ASSIGN_OR_RETURN(detour_, FindFree(kVdsoSlotBytes));
  }
  return absl::OkStatus();
}

absl::Status MemoryPlan::MoveTrampoline() {
  const auto& vmas = state_.mm().vmas();
  const bool collides = std::any_of(vmas.begin(), vmas.end(), [](const criu::vma_entry& vma) {
    return Overlap(vma.start(), vma.end() - vma.start(), kTrampoline, kTrampolineBytes);
  });
  if (!collides) return absl::OkStatus();
  // Room for the detour as well: it must not be given away twice.
  uint64_t to = 0;
  if (detour_ != 0) {
    PREDUMP_ASSIGN_OR_RETURN(to, FindFree((1ull << 32) + kTrampolineBytes));
    detour_ = to;
    to += 1ull << 32;
  } else {
    PREDUMP_ASSIGN_OR_RETURN(to, FindFree(kTrampolineBytes));
  }
  PREDUMP_ASSIGN_OR_RETURN(const int64_t result,
                           process_.GateCall(process_.image_gate, SYS_mremap,
                                             {kTrampoline, kTrampolineBytes, kTrampolineBytes,
                                              MREMAP_MAYMOVE | MREMAP_FIXED, to}));
  if (result < 0 && result > -4096) {
    return base::ErrnoError(static_cast<int>(-result), "move the trampoline");
  }
  process_.trampoline.set_remote(base::RemoteAddress(to));
  return absl::OkStatus();
}

void MemoryPlan::AddMoves(CallPlan& plan) const {
  const auto move = [&](uint64_t from, uint64_t bytes, uint64_t to, std::string what) {
    plan.Expect(plan.Call(SYS_mremap, {from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to},
                          std::move(what)),
                static_cast<int64_t>(to));
  };
  plan.Call(SYS_munmap, {kHome, kVdsoSlot - kHome}, "unmap the landing's image");
  std::vector<Move> moves = kernel_moves_;
  if (detour_ != 0) {
    for (Move& step : moves) {
      const uint64_t wait_at = detour_ + (step.from.start - kVdsoSlot);
      move(step.from.start, step.from.bytes, wait_at,
           absl::StrCat("set ", step.from.name, " aside"));
      step.from.start = wait_at;
    }
  }
  const LandingShared& shared = process_.trampoline.shared();
  for (uint64_t i = 0; i < shared.staged_count; ++i) {
    const StagedPiece& piece = shared.staged[i];
    move(StagedAddress(shared, piece.start), piece.bytes, piece.start,
         absl::StrFormat("move staged memory to %x", piece.start));
  }
  for (const Move& step : moves) {
    move(step.from.start, step.from.bytes, step.to,
         absl::StrFormat("move %s to %x", step.from.name, step.to));
  }
}

void MemoryPlan::AddProtections(CallPlan& plan) const {
  // Neighbours with equal protection become one call; file and anonymous may share it.
  uint64_t start = 0;
  uint64_t end = 0;
  uint32_t prot = 0;
  const auto flush = [&] {
    if (start == end) return;
    plan.Call(SYS_mprotect, {start, end - start, uint64_t{prot}},
              absl::StrFormat("protect %x-%x", start, end));
    start = end = 0;
  };
  // Readable and writable ones too: the landing has what once was a reservation without access, and
  // shared files with the protection of the round that mapped them; nobody told it of a change. It
  // costs nothing where all is well.
  for (const auto& vma : state_.mm().vmas()) {
    if (IsKernelProvided(vma)) continue;
    if (vma.start() != end || vma.prot() != prot) {
      flush();
      start = vma.start();
      prot = vma.prot();
    }
    end = vma.end();
  }
  flush();
}

void MemoryPlan::AddAttributes(CallPlan& plan) const {
  for (const auto& vma : state_.mm().vmas()) {
    if (IsKernelProvided(vma)) continue;
    const uint64_t bytes = vma.end() - vma.start();
    for (const int advice : {MADV_RANDOM, MADV_SEQUENTIAL, MADV_DONTFORK, MADV_MERGEABLE,
                             MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTDUMP, MADV_WIPEONFORK}) {
      if ((vma.madv() & (1ull << advice)) == 0) continue;
      plan.Call(SYS_madvise, {vma.start(), bytes, advice},
                absl::StrCat("advice ", advice, " on the mapping ", RangeText(vma)));
    }
    if ((vma.flags() & MAP_LOCKED) != 0) {
      // What nobody may touch, or is beyond the end of its file, cannot be fetched, which mlock(2)
      // reports once it is locked.
      const bool fetchable = vma.prot() != 0 && (vma.flags() & MAP_ANONYMOUS) != 0;
      plan.Call(SYS_mlock, {vma.start(), bytes}, absl::StrCat("lock ", RangeText(vma)),
                fetchable ? CallPlan::OnError::kStop : CallPlan::OnError::kContinue);
    }
  }
  for (const auto& extra : state_.extra().vmas()) {
    if (extra.anonymous_name().empty()) continue;
    const auto& vmas = state_.mm().vmas();
    const auto vma = std::partition_point(vmas.begin(), vmas.end(),
                                          [&](const auto& v) { return v.start() < extra.start(); });
    if (vma == vmas.end() || vma->start() != extra.start()) continue;
    // Names are for people: a kernel without CONFIG_ANON_VMA_NAME does as well.
    plan.Call(SYS_prctl,
              {PR_SET_VMA, PR_SET_VMA_ANON_NAME, vma->start(), vma->end() - vma->start(),
               plan.String(extra.anonymous_name())},
              absl::StrCat("name the mapping ", RangeText(*vma)), CallPlan::OnError::kContinue);
  }
  AddMmFields(plan);
  constexpr uint64_t kVmLocked = 0x2000;  // VM_LOCKED, VM_LOCKONFAULT of linux/mm.h
  constexpr uint64_t kVmLockOnFault = 0x80000;
  const uint64_t of_new_mappings = state_.extra().mm_def_flags();
  if ((of_new_mappings & kVmLocked) != 0) {
    const int on_fault = (of_new_mappings & kVmLockOnFault) != 0 ? MCL_ONFAULT : 0;
    plan.Call(SYS_mlockall, {MCL_FUTURE | on_fault}, "lock what will be mapped");
  }
}

void MemoryPlan::AddMmFields(CallPlan& plan) const {
  const criu::mm_entry& mm = state_.mm();
  const auto& words = state_.extra().auxv_size() != 0 ? state_.extra().auxv() : mm.mm_saved_auxv();
  const criu::reg_file_entry* exe = files_.FindRegular(mm.exe_file_id());
  // Everything is closed, so the executable gets descriptor 0, which the kernel wants in the
  // structure; it takes exe_fd without CAP_SYS_RESOURCE once no old executable is mapped.
  plan.Expect(plan.Call(SYS_open, {plan.String(exe->name()), O_RDONLY | O_CLOEXEC},
                        absl::StrCat("open the executable ", exe->name())),
              0);
  prctl_mm_map map = {};
  map.start_code = mm.mm_start_code();
  map.end_code = mm.mm_end_code();
  map.start_data = mm.mm_start_data();
  map.end_data = mm.mm_end_data();
  map.start_brk = mm.mm_start_brk();
  map.brk = mm.mm_brk();
  map.start_stack = mm.mm_start_stack();
  map.arg_start = mm.mm_arg_start();
  map.arg_end = mm.mm_arg_end();
  map.env_start = mm.mm_env_start();
  map.env_end = mm.mm_env_end();
  map.auxv = reinterpret_cast<__u64*>(plan.Bytes(absl::string_view(
      reinterpret_cast<const char*>(words.data()), static_cast<size_t>(words.size()) * 8)));
  map.auxv_size = static_cast<uint32_t>(words.size()) * 8;
  map.exe_fd = 0;
  plan.Call(SYS_prctl, {PR_SET_MM, PR_SET_MM_MAP, plan.Struct(map), sizeof(map), 0},
            absl::StrCat("set addresses and executable ", exe->name()));
  plan.Call(SYS_close, {0}, "close the executable");
}

}  // namespace predump::restore::internal
