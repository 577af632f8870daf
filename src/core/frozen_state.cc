#include "src/core/frozen_state.h"

#include <sys/mman.h>
#include <sys/user.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/kernel/process_memory.h"
#include "src/pagemap/extent.h"

namespace predump::core {
namespace {

using base::AddressRange;
using kernel::ProcessHandle;

// __USER32_CS: the leader runs 32-bit code.
constexpr uint64_t kCompatibilityCodeSegment = 0x23;
// The red zone of the x86-64 ABI: below the stack pointer, and in use.
constexpr uint64_t kRedZone = 128;

struct timeval FromTicks(int64_t ticks) {
  static const int64_t per_second = ::sysconf(_SC_CLK_TCK);
  return {ticks / per_second, ticks % per_second * 1'000'000 / per_second};
}

absl::StatusOr<ThreadState> ReadThread(const ProcessHandle& process, kernel::Tracee& thread) {
  ThreadState state;
  PREDUMP_ASSIGN_OR_RETURN(const user_regs_struct registers, thread.GetRegisters());
  static_assert(sizeof registers == sizeof state.status.pr_reg);
  std::memcpy(&state.status.pr_reg, &registers, sizeof registers);
  PREDUMP_ASSIGN_OR_RETURN(state.xstate, thread.GetXstate());
  state.status.pr_fpvalid = 1;
  PREDUMP_ASSIGN_OR_RETURN(const kernel::StatFields stat,
                           kernel::ReadThreadStat(process, thread.tid()));
  PREDUMP_ASSIGN_OR_RETURN(const kernel::StatusFields status,
                           kernel::ReadThreadStatus(process, thread.tid()));
  // No signal: it was stopped, not killed.
  state.status.pr_sigpend = status.pending_thread;
  PREDUMP_ASSIGN_OR_RETURN(state.status.pr_sighold, thread.GetSignalMask());
  state.status.pr_pid = thread.tid();
  state.status.pr_ppid = stat.ppid;
  state.status.pr_pgrp = stat.process_group;
  state.status.pr_sid = stat.session;
  state.status.pr_utime = FromTicks(stat.user_ticks);
  state.status.pr_stime = FromTicks(stat.system_ticks);
  return state;
}

uint64_t StackPointer(const ThreadState& thread) {
  user_regs_struct registers;
  std::memcpy(&registers, &thread.status.pr_reg, sizeof registers);
  return registers.rsp;
}

// The pages from the top of the stack of `thread` on, at most `bytes`, as far as they are private
// anonymous memory.
AddressRange StackTop(const ThreadState& thread, const std::vector<kernel::MapsEntry>& mappings,
                      uint64_t bytes) {
  const uint64_t page = base::PageSize();
  const uint64_t pointer = StackPointer(thread);
  const auto it = std::partition_point(
      mappings.begin(), mappings.end(),
      [&](const kernel::MapsEntry& m) { return m.range.end().value() <= pointer; });
  if (it == mappings.end() || !it->range.Contains(base::RemoteAddress(pointer))) return {};
  if (it->shared || it->IsFile() || it->IsKernelProvided()) return {};
  const uint64_t start =
      std::max(it->range.start().value(), (pointer - std::min(pointer, kRedZone)) / page * page);
  return AddressRange::FromOrdered(start, std::min(start + bytes, it->range.end().value()));
}

absl::StatusOr<std::vector<MemoryCopy>> CopyStacks(const ProcessHandle& process,
                                                   const FrozenState& state) {
  const uint64_t page = base::PageSize();
  const uint64_t share = kStackOfAllThreads.value() / state.threads.size() / page * page;
  const uint64_t bytes = std::clamp(share, page, kStackOfOneThread.value());
  std::vector<pagemap::Extent> tops;
  for (const ThreadState& thread : state.threads) {
    tops.push_back(StackTop(thread, state.mappings, bytes));
  }
  std::vector<MemoryCopy> copies;
  const auto disjoint = pagemap::ExtentSet::FromUnsorted(std::move(tops));
  for (const AddressRange& range : disjoint.extents()) {
    MemoryCopy copy = {range, std::vector<std::byte>(range.size().value())};
    PREDUMP_ASSIGN_OR_RETURN(const base::ByteCount got,
                             kernel::ReadProcessMemory(process, std::span(&range, 1), copy.bytes));
    const uint64_t whole = got.value() / page * page;
    if (whole == 0) continue;
    copy.range = AddressRange::FromOrdered(range.start().value(), range.start().value() + whole);
    copy.bytes.resize(whole);
    copies.push_back(std::move(copy));
  }
  return copies;
}

void CopyText(const std::string& text, char* out, size_t size) {
  std::memcpy(out, text.data(), std::min(text.size(), size - 1));
}

}  // namespace

absl::StatusOr<elf_prpsinfo> ReadProcessInfo(const ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(const kernel::StatFields stat, kernel::ReadStat(process));
  PREDUMP_ASSIGN_OR_RETURN(const kernel::StatusFields status, kernel::ReadStatus(process));
  PREDUMP_ASSIGN_OR_RETURN(std::string arguments, kernel::ReadProcFile(process, "cmdline"));
  elf_prpsinfo info = {};
  constexpr absl::string_view kStates = "RSDTZW";
  const size_t number = kStates.find(stat.state);
  info.pr_state = static_cast<char>(number == absl::string_view::npos ? kStates.size() : number);
  info.pr_sname = number == absl::string_view::npos ? '.' : stat.state;
  info.pr_zomb = stat.state == 'Z';
  info.pr_nice = static_cast<char>(stat.nice);
  info.pr_flag = stat.flags;
  info.pr_uid = status.uids[0];
  info.pr_gid = status.gids[0];
  info.pr_pid = stat.pid;
  info.pr_ppid = stat.ppid;
  info.pr_pgrp = stat.process_group;
  info.pr_sid = stat.session;
  CopyText(stat.comm, info.pr_fname, sizeof info.pr_fname);
  while (!arguments.empty() && arguments.back() == '\0') arguments.pop_back();
  std::replace(arguments.begin(), arguments.end(), '\0', ' ');
  CopyText(arguments, info.pr_psargs, sizeof info.pr_psargs);
  return info;
}

absl::StatusOr<FrozenState> ReadFrozenState(kernel::FrozenProcess& frozen,
                                            const StateRequest& request) {
  const ProcessHandle& process = frozen.process();
  FrozenState state;
  for (kernel::Tracee& thread : frozen.threads()) {
    PREDUMP_ASSIGN_OR_RETURN(ThreadState one, ReadThread(process, thread));
    state.threads.push_back(std::move(one));
  }
  user_regs_struct leader;
  std::memcpy(&leader, &state.threads.front().status.pr_reg, sizeof leader);
  if (leader.cs == kCompatibilityCodeSegment) {
    return absl::UnimplementedError(absl::StrCat(
        "process ", process.pid(), " is a 32-bit program: only 64-bit core files are written"));
  }
  if (request.first_thread.has_value()) {
    const auto first = std::find_if(
        state.threads.begin(), state.threads.end(),
        [&](const ThreadState& t) { return t.status.pr_pid == *request.first_thread; });
    if (first == state.threads.end()) {
      return absl::NotFoundError(
          absl::StrCat("process ", process.pid(), " has no thread ", *request.first_thread));
    }
    std::rotate(state.threads.begin(), first, first + 1);
  }
  PREDUMP_ASSIGN_OR_RETURN(state.auxv, kernel::ReadProcFile(process, "auxv"));
  PREDUMP_ASSIGN_OR_RETURN(state.mappings, kernel::ReadMaps(process));
  if (request.stacks) {
    PREDUMP_ASSIGN_OR_RETURN(state.stacks, CopyStacks(process, state));
  }
  return state;
}

}  // namespace predump::core
