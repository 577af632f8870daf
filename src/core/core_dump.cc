#include "src/core/core_dump.h"

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "spdlog/spdlog.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/core/contents.h"
#include "src/core/frozen_state.h"
#include "src/core/layout.h"
#include "src/core/notes.h"
#include "src/core/output.h"
#include "src/core/page_copier.h"
#include "src/core/source.h"
#include "src/kernel/freezer.h"
#include "src/kernel/process.h"
#include "src/kernel/process_memory.h"
#include "src/kernel/procfs.h"

namespace predump::core {
namespace {

using kernel::ProcessHandle;
using pagemap::ExtentSet;

absl::StatusOr<uint64_t> ReadFilter(const ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(const std::string text,
                           kernel::ReadProcFile(process, "coredump_filter"));
  uint64_t filter = 0;
  if (!absl::SimpleHexAtoi(absl::StripSuffix(text, "\n"), &filter)) {
    return absl::DataLossError(absl::StrCat("coredump_filter: \"", text, "\""));
  }
  return filter;
}

// Notices that the process has become another program.
class ProgramWatch {
 public:
  static absl::StatusOr<ProgramWatch> Create(const ProcessHandle& process) {
    PREDUMP_ASSIGN_OR_RETURN(kernel::ProcessMemory memory,
                             kernel::ProcessMemory::Open(process, O_RDONLY));
    PREDUMP_ASSIGN_OR_RETURN(const kernel::StatFields stat, kernel::ReadStat(process));
    return ProgramWatch(process, std::move(memory), stat.start_stack);
  }

  // FailedPrecondition after an exec; TargetExited. To be asked when no helper shares the memory
  // any more.
  absl::Status Check() const {
    PREDUMP_ASSIGN_OR_RETURN(const bool exited, process_.HasExited());
    if (exited) return Exited();
    const absl::StatusOr<kernel::StatFields> stat = kernel::ReadStat(process_);
    if (base::IsTargetExited(stat.status())) return Exited();
    PREDUMP_RETURN_IF_ERROR(stat);
    // The descriptor is bound to the address space that was, and an exec leaves that to nobody. The
    // start of the stack alone would do but for programs without address randomization.
    std::array<std::byte, 1> byte;
    const absl::Status memory = memory_.Read(base::RemoteAddress(start_stack_), byte).status();
    if (stat->start_stack == start_stack_ && !base::IsTargetExited(memory)) {
      return absl::OkStatus();
    }
    // Which has neither on its way out.
    if (process_.IsEnding()) return Exited();
    return absl::FailedPreconditionError(
        absl::StrCat("process ", process_.pid(), " executed another program (it is '", stat->comm,
                     "' now) while its core was taken; start again for that one"));
  }

 private:
  ProgramWatch(const ProcessHandle& process, kernel::ProcessMemory memory, uint64_t start_stack)
      : process_(process), memory_(std::move(memory)), start_stack_(start_stack) {}

  absl::Status Exited() const {
    return base::TargetExited(
        absl::StrCat("process ", process_.pid(), " has exited while its core was taken"));
  }

  const ProcessHandle& process_;
  kernel::ProcessMemory memory_;
  uint64_t start_stack_;
};

const kernel::MapsEntry* FindVdso(const std::vector<kernel::MapsEntry>& maps) {
  const auto it = std::find_if(maps.begin(), maps.end(),
                               [](const kernel::MapsEntry& m) { return m.path == "[vdso]"; });
  return it == maps.end() ? nullptr : &*it;
}

// The vDSO as it is without the helper's code in its padding. Nothing where there is none.
absl::StatusOr<std::optional<MemoryCopy>> CopyVdso(const ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<kernel::MapsEntry> maps, kernel::ReadMaps(process));
  const kernel::MapsEntry* vdso = FindVdso(maps);
  if (vdso == nullptr) return std::nullopt;
  MemoryCopy copy = {vdso->range, std::vector<std::byte>(vdso->range.size().value())};
  PREDUMP_RETURN_IF_ERROR(
      kernel::ReadProcessMemoryExactly(process, vdso->range.start(), copy.bytes));
  return copy;
}

// The parts of `copies` (disjoint) that `covered` has, ascending.
std::vector<MemoryCopy> Within(const ExtentSet& covered, std::vector<MemoryCopy> copies) {
  std::vector<MemoryCopy> parts;
  for (const MemoryCopy& copy : copies) {
    ExtentSet range;
    range.Add(copy.range);
    const ExtentSet common = covered.Intersection(range);
    for (const pagemap::Extent& extent : common.extents()) {
      const uint64_t from = (extent.start() - copy.range.start()).value();
      const auto first = copy.bytes.begin() + static_cast<ptrdiff_t>(from);
      parts.push_back({extent, {first, first + static_cast<ptrdiff_t>(extent.size().value())}});
    }
  }
  std::sort(parts.begin(), parts.end(),
            [](const MemoryCopy& a, const MemoryCopy& b) { return a.range < b.range; });
  return parts;
}

// One core file on its way.
class Dump {
 public:
  Dump(const CoreOptions& options, const ProcessHandle& process, Output& output, CoreReport& report)
      : options_(options), process_(process), output_(output), report_(report) {}

  absl::Status Run() {
    PREDUMP_ASSIGN_OR_RETURN(const ProgramWatch watch, ProgramWatch::Create(process_));
    PREDUMP_ASSIGN_OR_RETURN(filter_, ReadFilter(process_));
    PREDUMP_ASSIGN_OR_RETURN(const elf_prpsinfo info, ReadProcessInfo(process_));
    PREDUMP_ASSIGN_OR_RETURN(vdso_, CopyVdso(process_));
    PREDUMP_ASSIGN_OR_RETURN(source_,
                             ChooseAndSetUp(process_, options_.source, options_.freeze_timeout));
    report_.source = std::string(source_.source->name());
    report_.source_reason = source_.reason;
    report_.setup_stop = source_.stopped;
    const absl::Status taken = TakeAll(info);
    const absl::Status finished = source_.source->Finish();
    // What became of the process tells more than how a call on it failed.
    PREDUMP_RETURN_IF_ERROR(watch.Check());
    PREDUMP_RETURN_IF_ERROR(taken);
    if (!finished.ok()) spdlog::warn("ending the helper: {}", std::string(finished.message()));
    return absl::OkStatus();
  }

 private:
  absl::Status TakeAll(const elf_prpsinfo& info) {
    if (IsCancelled(options_.cancel_fd)) return absl::CancelledError("cancelled");
    absl::Status status = FreezeAndRead(info);
    if (status.ok() && !options_.consistent) status = Thaw();
    if (status.ok()) status = TakeMemory();
    status.Update(Thaw());
    return status;
  }

  absl::Status FreezeAndRead(const elf_prpsinfo& info) {
    const kernel::CpuFollower follower(process_);
    stopped_ = base::Stopwatch();
    PREDUMP_ASSIGN_OR_RETURN(frozen_,
                             kernel::FrozenProcess::Freeze(process_, options_.freeze_timeout));
    PREDUMP_ASSIGN_OR_RETURN(state_,
                             ReadFrozenState(*frozen_, {.first_thread = options_.first_thread,
                                                        .stacks = !options_.consistent}));
    state_.process = info;
    report_.threads = state_.threads.size();
    return absl::OkStatus();
  }

  // If it was not done before.
  absl::Status Thaw() {
    if (!frozen_.has_value()) return absl::OkStatus();
    const absl::Status status = std::move(*frozen_).Thaw();
    frozen_.reset();
    report_.stopped = stopped_.Elapsed();
    return status;
  }

  absl::Status TakeMemory() {
    // Walks all page tables, so that it is not done under the short freeze.
    PREDUMP_ASSIGN_OR_RETURN(const std::vector<kernel::VmaFlags> flags,
                             kernel::ReadSmapsFlags(process_));
    const auto pace = options_.consistent ? pagemap::WalkPace::kWhole : pagemap::WalkPace::kInSteps;
    PREDUMP_ASSIGN_OR_RETURN(
        Contents contents,
        FindContents(process_, WithFlags(state_.mappings, flags), filter_, pace));
    const std::string notes = BuildNotes(state_);
    const Layout layout = Layout::Create(contents.taken, base::ByteCount(notes.size()));
    report_.segments = layout.segments().size();
    report_.file_bytes = layout.file_size();
    report_.warnings = std::move(contents.warnings);

    ExtentSet pages;
    for (const Taken& taken : contents.taken) pages.AddAll(taken.pages);
    std::vector<MemoryCopy> copies = std::move(state_.stacks);
    const kernel::MapsEntry* vdso = FindVdso(state_.mappings);
    if (vdso_.has_value() && vdso != nullptr && vdso->range == vdso_->range) {
      copies.push_back(*std::move(vdso_));
    }
    copies = Within(layout.covered(), std::move(copies));

    PREDUMP_RETURN_IF_ERROR(WriteText(0, absl::StrCat(layout.Headers(), notes)));
    PageCopier copier(layout, *source_.source, output_, options_.cancel_fd);
    PREDUMP_RETURN_IF_ERROR(copier.Copy(pages, copies));
    report_.pages = copier.written();
    return NameWhatIsMissing(contents.taken, copier.vanished());
  }

  absl::Status WriteText(uint64_t offset, const std::string& text) {
    return output_.Write(offset, std::as_bytes(std::span(text)));
  }

  // Mappings, or parts of them, that were there at the freeze and not when they were to be copied.
  absl::Status NameWhatIsMissing(const std::vector<Taken>& taken, const ExtentSet& vanished) {
    PREDUMP_ASSIGN_OR_RETURN(const std::vector<kernel::MapsEntry> now, kernel::ReadMaps(process_));
    ExtentSet mapped;
    for (const kernel::MapsEntry& entry : now) mapped.Add(entry.range);
    for (const Taken& one : taken) {
      const kernel::MapsEntry& entry = one.mapping.entry;
      if (PolicyOf(one.mapping, filter_).content == Content::kNothing) continue;
      ExtentSet gone;
      gone.Add(entry.range);
      ExtentSet unreadable = vanished.Intersection(gone);
      gone.Subtract(mapped);
      unreadable.Subtract(gone);
      const std::string name = entry.path.empty() ? "" : absl::StrCat(" (", entry.path, ")");
      for (const pagemap::Extent& extent : gone.extents()) {
        report_.warnings.push_back(
            absl::StrCat("memory ", extent.ToString(), name,
                         " was unmapped while it was copied: what was not copied by then reads as "
                         "zeros"));
      }
      // Past the end of a file there is nothing to be missed.
      if (entry.IsFile()) continue;
      for (const pagemap::Extent& extent : unreadable.extents()) {
        report_.warnings.push_back(absl::StrCat("memory ", extent.ToString(), name,
                                                " could not be read: it reads as zeros"));
      }
    }
    return absl::OkStatus();
  }

  const CoreOptions& options_;
  const ProcessHandle& process_;
  Output& output_;
  CoreReport& report_;

  uint64_t filter_ = 0;
  std::optional<MemoryCopy> vdso_;
  ChosenSource source_;
  FrozenState state_;
  std::optional<kernel::FrozenProcess> frozen_;
  base::Stopwatch stopped_;  // since the freeze was asked for
};

absl::Status OpenAndDump(const CoreOptions& options, CoreReport& report) {
  // First what may fail without the process having been touched.
  PREDUMP_ASSIGN_OR_RETURN(const std::unique_ptr<Output> output,
                           OpenOutput(options.output, options.cancel_fd));
  PREDUMP_ASSIGN_OR_RETURN(const ProcessHandle process, ProcessHandle::Open(options.pid));
  PREDUMP_ASSIGN_OR_RETURN(report.command, kernel::ReadComm(process));
  PREDUMP_RETURN_IF_ERROR(Dump(options, process, *output, report).Run());
  if (IsCancelled(options.cancel_fd)) return absl::CancelledError("cancelled");
  PREDUMP_RETURN_IF_ERROR(output->Finish(report.file_bytes));
  return absl::OkStatus();
}

}  // namespace

absl::Status DumpCore(const CoreOptions& options, CoreReport& report) {
  const base::Stopwatch total;
  report.consistent = options.consistent;
  const absl::Status status = OpenAndDump(options, report);
  report.total_time = total.Elapsed();
  return status;
}

}  // namespace predump::core
