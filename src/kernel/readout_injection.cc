#include "src/kernel/readout_injection.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/kernel/injected_program.h"
#include "src/kernel/procfs_maps.h"
#include "src/kernel/procfs_task.h"
#include "src/kernel/readout_program_x86_64.h"
#include "src/kernel/restart.h"
#include "src/kernel/restartable_sequence.h"
#include "src/kernel/vdso_padding.h"

namespace predump::kernel {
namespace {

// Nobody else runs in the process: the calls wait for nothing.
constexpr absl::Duration kCallTimeout = absl::Seconds(5);
constexpr uint64_t kPlaceAlignment = 64;
constexpr size_t kBufferAlignment = 16;

size_t Aligned(size_t bytes) { return (bytes + kBufferAlignment - 1) & ~(kBufferAlignment - 1); }

void SetArgument(user_regs_struct& registers, size_t index, uint64_t value) {
  unsigned long long* const places[] = {&registers.rdi, &registers.rsi, &registers.rdx,
                                        &registers.r10, &registers.r8,  &registers.r9};
  *places[index] = value;
}

class Readout {
 public:
  Readout(FrozenProcess& frozen, std::span<const std::vector<ReadoutCall>> calls)
      : frozen_(frozen), calls_(calls) {}

  absl::StatusOr<std::vector<std::vector<ReadoutAnswer>>> Run();

 private:
  absl::Status Prepare();
  absl::Status CheckThread(const Tracee& thread) const;
  absl::StatusOr<std::vector<std::vector<ReadoutAnswer>>> AskAll();
  absl::StatusOr<std::vector<ReadoutAnswer>> AskThread(Tracee& thread,
                                                       const std::vector<ReadoutCall>& calls);
  absl::Status Enter(Tracee& thread, const user_regs_struct& original, uint64_t mask);
  absl::StatusOr<int64_t> Call(Tracee& thread, const ReadoutCall& call, size_t buffer_offset);
  absl::Status LeaveProgram(Tracee& thread, const user_regs_struct& original, uint64_t mask);
  absl::StatusOr<user_regs_struct> NextSyscallStop(Tracee& thread);
  absl::StatusOr<int> NoteSignal(const WaitEvent& event);

  FrozenProcess& frozen_;
  const std::span<const std::vector<ReadoutCall>> calls_;
  std::optional<ProcessMemory> memory_;
  base::AddressRange padding_;
  base::RemoteAddress place_;  // of the program
  base::RemoteAddress call_;   // of its syscall instruction
  base::RemoteAddress scratch_;
  std::vector<std::byte> covered_;  // what was in the program's place
  bool inside_ = false;             // a thread may be inside the program
  bool stop_signal_held_ = false;
};

absl::StatusOr<std::vector<std::vector<ReadoutAnswer>>> Readout::Run() {
  PREDUMP_RETURN_IF_ERROR(Prepare());
  absl::StatusOr<std::vector<std::vector<ReadoutAnswer>>> answers = AskAll();
  // A thread that could not be brought back finishes the program once it is let go of.
  if (!inside_) {
    const absl::Status status = memory_->Write(place_, covered_);
    if (answers.ok() && !status.ok()) answers = status;
  }
  if (stop_signal_held_) {
    const absl::Status status = frozen_.process().SendSignal(SIGSTOP);
    if (answers.ok() && !status.ok()) answers = status;
  }
  return answers;
}

absl::Status Readout::Prepare() {
  if (frozen_.was_stopped()) {
    return absl::FailedPreconditionError(
        absl::StrCat("process ", frozen_.process().pid(), " is stopped by a signal"));
  }
  if (calls_.size() > frozen_.threads().size()) {
    return absl::InvalidArgumentError("calls for more threads than there are");
  }
  for (const std::vector<ReadoutCall>& calls : calls_) {
    size_t bytes = 0;
    for (const ReadoutCall& call : calls) bytes += Aligned(call.buffer_bytes);
    if (bytes > base::PageSize()) {
      return absl::InvalidArgumentError(absl::StrCat(bytes, " bytes of buffers for one thread"));
    }
  }
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<MapsEntry> maps, ReadMaps(frozen_.process()));
  PREDUMP_ASSIGN_OR_RETURN(memory_,
                           ProcessMemory::OpenThread(frozen_.threads().front().tid(), O_RDWR));
  PREDUMP_ASSIGN_OR_RETURN(padding_, FindVdsoPadding(maps, *memory_));
  if (padding_.size().value() < ReadoutProgramSize()) {
    return absl::UnimplementedError(absl::StrCat("the vDSO has room for ", padding_.size().value(),
                                                 " bytes only; ", ReadoutProgramSize(),
                                                 " are needed"));
  }
  // At the end: a helper task may live at the beginning.
  const uint64_t place =
      (padding_.end().value() - ReadoutProgramSize()) / kPlaceAlignment * kPlaceAlignment;
  if (place < padding_.start().value()) {
    return absl::UnimplementedError("the vDSO has no room for the program");
  }
  place_ = base::RemoteAddress(place);
  PREDUMP_ASSIGN_OR_RETURN(scratch_, FindRemotePage(maps));
  for (size_t i = 0; i < calls_.size(); ++i) {
    if (!calls_[i].empty()) PREDUMP_RETURN_IF_ERROR(CheckThread(frozen_.threads()[i]));
  }
  covered_.resize(ReadoutProgramSize());
  PREDUMP_RETURN_IF_ERROR(memory_->ReadExactly(place_, covered_));
  // What an engine left behind that died in here is not put back.
  if (memcmp(covered_.data(), kPaddingMagic, sizeof kPaddingMagic) == 0) {
    covered_.assign(covered_.size(), std::byte{0});
  }
  return absl::OkStatus();
}

absl::Status Readout::CheckThread(const Tracee& thread) const {
  PREDUMP_RETURN_IF_ERROR(CheckMayRunProgram(thread, padding_));
  PREDUMP_ASSIGN_OR_RETURN(const StatusFields status,
                           ReadThreadStatus(frozen_.process(), thread.tid()));
  if (status.seccomp_mode == 0) return absl::OkStatus();
  // A filter may kill the process for a call it does not expect.
  return absl::FailedPreconditionError(
      absl::StrCat("thread ", thread.tid(), " is confined by seccomp"));
}

absl::StatusOr<std::vector<std::vector<ReadoutAnswer>>> Readout::AskAll() {
  std::vector<std::vector<ReadoutAnswer>> answers(calls_.size());
  for (size_t i = 0; i < calls_.size(); ++i) {
    if (calls_[i].empty()) continue;
    Tracee& thread = frozen_.threads()[i];
    const CpuFollower follower(frozen_.process(), thread.tid());
    PREDUMP_ASSIGN_OR_RETURN(answers[i], AskThread(thread, calls_[i]));
  }
  return answers;
}

absl::StatusOr<std::vector<ReadoutAnswer>> Readout::AskThread(
    Tracee& thread, const std::vector<ReadoutCall>& calls) {
  PREDUMP_ASSIGN_OR_RETURN(user_regs_struct original, thread.GetRegisters());
  PREDUMP_RETURN_IF_ERROR(LeaveRestartableSequence(thread, *memory_, &original));
  PREDUMP_ASSIGN_OR_RETURN(const uint64_t mask, thread.GetSignalMask());
  PREDUMP_RETURN_IF_ERROR(Enter(thread, original, mask));
  PREDUMP_RETURN_IF_ERROR(NextSyscallStop(thread));  // entry of mmap
  PREDUMP_ASSIGN_OR_RETURN(const user_regs_struct mapped, NextSyscallStop(thread));
  if (mapped.rax != scratch_.value()) {
    PREDUMP_RETURN_IF_ERROR(LeaveProgram(thread, original, mask));
    return base::ErrnoError(static_cast<int>(-static_cast<int64_t>(mapped.rax)),
                            "map two pages for a moment in process ", frozen_.process().pid());
  }
  std::vector<ReadoutAnswer> answers(calls.size());
  size_t used = 0;
  for (size_t i = 0; i < calls.size(); ++i) {
    PREDUMP_ASSIGN_OR_RETURN(answers[i].result, Call(thread, calls[i], used));
    used += Aligned(calls[i].buffer_bytes);
  }
  std::vector<std::byte> buffers(used);
  if (used != 0) PREDUMP_RETURN_IF_ERROR(memory_->ReadExactly(scratch_, buffers));
  PREDUMP_RETURN_IF_ERROR(LeaveProgram(thread, original, mask));
  auto next = buffers.begin();
  for (size_t i = 0; i < calls.size(); ++i) {
    answers[i].bytes.assign(next, next + static_cast<ptrdiff_t>(calls[i].buffer_bytes));
    next += static_cast<ptrdiff_t>(Aligned(calls[i].buffer_bytes));
  }
  return answers;
}

absl::Status Readout::Enter(Tracee& thread, const user_regs_struct& original, uint64_t mask) {
  const ReadoutProgram readout =
      BuildReadoutProgram({.resume = RestartRegisters(original, {}).registers,
                           .signal_mask = mask,
                           .scratch = scratch_});
  call_ = place_ + base::ByteCount(readout.call);
  inside_ = true;
  return EnterProgram(thread, *memory_, place_, readout.program, original);
}

// The thread is in the stop behind a call, and is in the next such stop afterwards. Left alone it
// would make the call aimed at and go on with the program.
absl::StatusOr<int64_t> Readout::Call(Tracee& thread, const ReadoutCall& call,
                                      size_t buffer_offset) {
  PREDUMP_ASSIGN_OR_RETURN(user_regs_struct registers, thread.GetRegisters());
  registers.rax = call.number;
  registers.orig_rax = ~0ull;
  registers.rip = call_.value();
  for (size_t i = 0; i < call.arguments.size(); ++i) SetArgument(registers, i, call.arguments[i]);
  if (call.buffer_argument.has_value()) {
    SetArgument(registers, *call.buffer_argument, scratch_.value() + buffer_offset);
  }
  if (call.new_page_argument.has_value()) {
    SetArgument(registers, *call.new_page_argument, scratch_.value() + base::PageSize());
  }
  PREDUMP_RETURN_IF_ERROR(thread.SetRegisters(registers));
  PREDUMP_RETURN_IF_ERROR(NextSyscallStop(thread));
  PREDUMP_ASSIGN_OR_RETURN(registers, NextSyscallStop(thread));
  return static_cast<int64_t>(registers.rax);
}

// The next call is the program's munmap, or the last one where there is nothing to unmap. It still
// runs, and the interrupt stops the thread right behind it, inside the kernel's signal path: with
// the registers of the first stop the kernel then goes on by its own rules.
absl::Status Readout::LeaveProgram(Tracee& thread, const user_regs_struct& original,
                                   uint64_t mask) {
  PREDUMP_RETURN_IF_ERROR(NextSyscallStop(thread));
  for (;;) {
    PREDUMP_RETURN_IF_ERROR(thread.Interrupt());
    PREDUMP_RETURN_IF_ERROR(thread.Continue());
    PREDUMP_ASSIGN_OR_RETURN(const WaitEvent event, thread.WaitForStop(kCallTimeout));
    if (event.kind == WaitEvent::Kind::kEventStop) break;
    PREDUMP_RETURN_IF_ERROR(NoteSignal(event));
  }
  PREDUMP_RETURN_IF_ERROR(thread.SetSignalMask(mask));
  PREDUMP_RETURN_IF_ERROR(thread.SetRegisters(original));
  inside_ = false;
  return absl::OkStatus();
}

absl::StatusOr<user_regs_struct> Readout::NextSyscallStop(Tracee& thread) {
  PREDUMP_RETURN_IF_ERROR(thread.RunToSyscallStop(
      kCallTimeout, [this](const WaitEvent& event) { return NoteSignal(event); }));
  return thread.GetRegisters();
}

absl::StatusOr<int> Readout::NoteSignal(const WaitEvent& event) {
  if (event.kind == WaitEvent::Kind::kSignalStop && event.code == SIGSTOP) {
    // The one signal that cannot be blocked: dropped here and sent again once all are back.
    stop_signal_held_ = true;
    return 0;
  }
  if (event.kind == WaitEvent::Kind::kEventStop) {
    // Somebody sent SIGCONT, which takes back a stop that came before it.
    stop_signal_held_ = false;
    return 0;
  }
  return absl::InternalError(absl::StrCat("inside the readout program: ", event.ToString()));
}

}  // namespace

absl::StatusOr<std::vector<std::vector<ReadoutAnswer>>> ReadOut(
    FrozenProcess& frozen, std::span<const std::vector<ReadoutCall>> calls) {
  return Readout(frozen, calls).Run();
}

}  // namespace predump::kernel
