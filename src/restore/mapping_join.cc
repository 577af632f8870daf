#include "src/restore/mapping_join.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "src/base/errors.h"
#include "src/images/image_constants.h"
#include "src/kernel/pagemap_scan.h"
#include "src/kernel/process_memory.h"
#include "src/kernel/procfs.h"
#include "src/restore/call_plan.h"
#include "src/restore/landing/layout.h"

namespace predump::restore::internal {
namespace {

constexpr absl::Duration kBatchTimeout = absl::Seconds(60);
constexpr size_t kPagesAtOnce = 1024;  // copied through a buffer of 4 MiB

struct Piece {
  uint64_t start = 0;
  uint64_t end = 0;

  uint64_t bytes() const { return end - start; }
};

// A mapping of the process that is several at the landing: ascending, without gaps.
struct Broken {
  const criu::vma_entry* vma = nullptr;
  std::vector<Piece> pieces;

  std::string ToString() const {
    return absl::StrFormat("the mapping %x-%x, which is in %d pieces here", vma->start(),
                           vma->end(), pieces.size());
  }
};

bool CanBeJoined(const criu::vma_entry& vma) {
  constexpr uint32_t kKernels = images::kVmaVdso | images::kVmaVvar | images::kVmaVsyscall;
  return (vma.status() & images::kVmaAnonymousPrivate) != 0 && (vma.status() & kKernels) == 0 &&
         (vma.end() <= kHome || vma.start() >= kHomeEnd);
}

class Joiner {
 public:
  Joiner(LandingProcess& process, const proto::ProcessState& state, const FindFreeRange& find_free)
      : process_(process), state_(state), find_free_(find_free) {}

  absl::Status Join();

 private:
  absl::StatusOr<std::vector<Broken>> FindBroken() const;
  absl::Status MakeAlike(const std::vector<Broken>& all);
  absl::Status ReplaceAllButLargest(const Broken& broken);
  absl::Status Replace(const criu::vma_entry& vma, std::span<const Piece> pieces);
  absl::Status CopyPages(uint64_t from, Piece to);
  absl::Status Call(uint64_t number, const std::array<uint64_t, 6>& arguments, const char* what);

  LandingProcess& process_;
  const proto::ProcessState& state_;
  const FindFreeRange& find_free_;
};

absl::StatusOr<std::vector<Broken>> Joiner::FindBroken() const {
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<kernel::MapsEntry> maps,
                           kernel::ReadMaps(process_.handle));
  std::vector<Broken> all;
  auto first = maps.begin();
  for (const auto& vma : state_.mm().vmas()) {
    while (first != maps.end() && first->range.end().value() <= vma.start()) ++first;
    // Nearly always one of the landing's covers it.
    if (first == maps.end() || first->range.end().value() >= vma.end()) continue;
    if (!CanBeJoined(vma)) continue;
    Broken broken{&vma, {}};
    uint64_t done = vma.start();
    for (auto at = first; at != maps.end() && done < vma.end(); ++at) {
      // What is missing or is something else, the final protection or the process would meet; it
      // must not be papered over.
      if (at->range.start().value() > done || at->IsFile() || at->shared) break;
      const uint64_t end = std::min<uint64_t>(at->range.end().value(), vma.end());
      broken.pieces.push_back({done, end});
      done = end;
    }
    if (done == vma.end()) all.push_back(std::move(broken));
  }
  return all;
}

// A reservation that was opened since, and advice given since, are all that separates some.
absl::Status Joiner::MakeAlike(const std::vector<Broken>& all) {
  PREDUMP_ASSIGN_OR_RETURN(CallPlan plan,
                           CallPlan::Create(process_.trampoline, {3 * all.size(), 0}));
  for (const Broken& broken : all) {
    const criu::vma_entry& vma = *broken.vma;
    const uint64_t bytes = vma.end() - vma.start();
    plan.Call(SYS_mprotect, {vma.start(), bytes, uint64_t{vma.prot()}},
              absl::StrFormat("protect %x-%x", vma.start(), vma.end()));
    for (const int advice : {MADV_HUGEPAGE, MADV_NOHUGEPAGE}) {
      if ((vma.madv() & (1ull << advice)) == 0) continue;
      plan.Call(SYS_madvise, {vma.start(), bytes, advice}, "advise", CallPlan::OnError::kContinue);
    }
  }
  PREDUMP_RETURN_IF_ERROR(plan.status());
  return plan.batch().Run(process_.leader(), process_.inner_pid, process_.inner_pid, kBatchTimeout);
}

absl::Status Joiner::Call(uint64_t number, const std::array<uint64_t, 6>& arguments,
                          const char* what) {
  PREDUMP_ASSIGN_OR_RETURN(const int64_t result,
                           process_.GateCall(process_.image_gate, number, arguments));
  if (result < 0 && result > -4096) return base::ErrnoError(static_cast<int>(-result), what);
  return absl::OkStatus();
}

// Untouched, what is made anew merges with the largest piece.
absl::Status Joiner::ReplaceAllButLargest(const Broken& broken) {
  const std::span<const Piece> pieces = broken.pieces;
  const auto largest =
      std::max_element(pieces.begin(), pieces.end(),
                       [](const Piece& a, const Piece& b) { return a.bytes() < b.bytes(); });
  const size_t kept = static_cast<size_t>(largest - pieces.begin());
  if (kept != 0) PREDUMP_RETURN_IF_ERROR(Replace(*broken.vma, pieces.first(kept)));
  if (kept + 1 == pieces.size()) return absl::OkStatus();
  return Replace(*broken.vma, pieces.subspan(kept + 1));
}

// Makes neighbouring `pieces` of `vma` anew, with one mmap(2), and gives them their contents back.
absl::Status Joiner::Replace(const criu::vma_entry& vma, std::span<const Piece> pieces) {
  const Piece whole = {pieces.front().start, pieces.back().end};
  PREDUMP_ASSIGN_OR_RETURN(const uint64_t aside, find_free_(whole.bytes()));
  for (const Piece& piece : pieces) {
    PREDUMP_RETURN_IF_ERROR(
        Call(SYS_mremap,
             {piece.start, piece.bytes(), piece.bytes(), MREMAP_MAYMOVE | MREMAP_FIXED,
              aside + (piece.start - whole.start)},
             "set memory aside"));
  }
  const uint64_t kind = vma.flags() & (MAP_GROWSDOWN | MAP_NORESERVE);
  PREDUMP_RETURN_IF_ERROR(
      Call(SYS_mmap,
           {whole.start, whole.bytes(), uint64_t{vma.prot()},
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | kind, ~uint64_t{0}, 0},
           "map memory anew"));
  for (const int advice : {MADV_HUGEPAGE, MADV_NOHUGEPAGE}) {
    if ((vma.madv() & (1ull << advice)) == 0) continue;
    // Of a kernel without huge pages this is refused, as it was when the landing mapped it.
    PREDUMP_RETURN_IF_ERROR(process_
                                .GateCall(process_.image_gate, SYS_madvise,
                                          {whole.start, whole.bytes(), uint64_t(advice), 0, 0, 0})
                                .status());
  }
  PREDUMP_RETURN_IF_ERROR(CopyPages(aside, whole));
  return Call(SYS_munmap, {aside, whole.bytes()}, "unmap what was set aside");
}

// Only what is there: all else reads as zeros in both.
absl::Status Joiner::CopyPages(uint64_t from, Piece to) {
  PREDUMP_ASSIGN_OR_RETURN(const kernel::PagemapFile pagemap,
                           kernel::PagemapFile::Open(process_.handle));
  // The protection is final already and need not allow it.
  PREDUMP_ASSIGN_OR_RETURN(const kernel::ProcessMemory memory,
                           kernel::ProcessMemory::Open(process_.handle, O_RDWR));
  std::vector<uint64_t> entries(kPagesAtOnce);
  std::vector<std::byte> buffer(kPagesAtOnce * kPageBytes);
  for (uint64_t done = 0; done < to.bytes();) {
    const uint64_t bytes = std::min<uint64_t>(to.bytes() - done, buffer.size());
    const size_t count = bytes / kPageBytes;
    PREDUMP_ASSIGN_OR_RETURN(
        const size_t got,
        pagemap.ReadEntries(base::AddressRange::FromOrdered(from + done, from + done + bytes),
                            std::span(entries).first(count)));
    if (got != count) return absl::InternalError("the pagemap ends inside a mapping");
    const auto held = [&](size_t page) {
      return (entries[page] & (kernel::kPagemapPresent | kernel::kPagemapSwapped)) != 0;
    };
    bool any = false;
    for (size_t page = 0; page < count;) {
      size_t end = page;
      while (end < count && held(end)) ++end;
      if (end == page) {
        ++page;
        continue;
      }
      const auto part = std::span(buffer).first((end - page) * kPageBytes);
      const uint64_t offset = done + page * kPageBytes;
      PREDUMP_RETURN_IF_ERROR(memory.ReadExactly(base::RemoteAddress(from + offset), part));
      PREDUMP_RETURN_IF_ERROR(memory.Write(base::RemoteAddress(to.start + offset), part));
      any = true;
      page = end;
    }
    // At once: the memory of a large mapping is not to be had twice.
    if (any) {
      PREDUMP_RETURN_IF_ERROR(
          Call(SYS_madvise, {from + done, bytes, MADV_DONTNEED}, "drop what was copied"));
    }
    done += bytes;
  }
  return absl::OkStatus();
}

absl::Status Joiner::Join() {
  PREDUMP_ASSIGN_OR_RETURN(std::vector<Broken> all, FindBroken());
  if (all.empty()) return absl::OkStatus();
  PREDUMP_RETURN_IF_ERROR(MakeAlike(all));
  PREDUMP_ASSIGN_OR_RETURN(all, FindBroken());
  if (all.empty()) return absl::OkStatus();
  for (const Broken& broken : all) {
    const absl::Status replaced = ReplaceAllButLargest(broken);
    if (!replaced.ok()) return base::Annotate(replaced, "join " + broken.ToString());
  }
  // Where a neighbour on the other side took what was made anew, or the largest piece was mapped
  // with other flags than the process's: what is mapped at once is one, whomever it merges with.
  PREDUMP_ASSIGN_OR_RETURN(all, FindBroken());
  for (const Broken& broken : all) {
    const absl::Status replaced = Replace(*broken.vma, broken.pieces);
    if (!replaced.ok()) return base::Annotate(replaced, "map anew " + broken.ToString());
  }
  if (all.empty()) return absl::OkStatus();
  PREDUMP_ASSIGN_OR_RETURN(all, FindBroken());
  if (all.empty()) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("the kernel did not join ", all.front().ToString()));
}

}  // namespace

absl::Status JoinMappings(LandingProcess& process, const proto::ProcessState& state,
                          const FindFreeRange& find_free) {
  return Joiner(process, state, find_free).Join();
}

}  // namespace predump::restore::internal
