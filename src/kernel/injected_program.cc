#include "src/kernel/injected_program.h"

#include <string.h>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"

namespace predump::kernel {
namespace {

constexpr uint64_t kCodeSegment64 = 0x33;
constexpr uint64_t kOverflowFlag = 1u << 11;

// 14 is rt_sigprocmask.
asm(R"(
  .pushsection .rodata
  .balign 64
  .globl predump_enter_begin, predump_enter_entry, predump_enter_end
  .globl predump_finish_begin, predump_finish_data, predump_finish_end
predump_enter_begin:
  .ascii "predump1"
enter_all_signals: .quad -1
predump_enter_entry:
  mov $14, %eax
  mov $2, %edi
  lea enter_all_signals(%rip), %rsi
  xor %edx, %edx
  mov $8, %r10d
  syscall
predump_enter_end:
predump_finish_begin:
  mov $14, %eax
  mov $2, %edi
  lea finish_mask(%rip), %rsi
  xor %edx, %edx
  mov $8, %r10d
  syscall
  mov finish_r15(%rip), %r15
  mov finish_r14(%rip), %r14
  mov finish_r13(%rip), %r13
  mov finish_r12(%rip), %r12
  mov finish_rbp(%rip), %rbp
  mov finish_rbx(%rip), %rbx
  mov finish_r11(%rip), %r11
  mov finish_r10(%rip), %r10
  mov finish_r9(%rip), %r9
  mov finish_r8(%rip), %r8
  mov finish_rcx(%rip), %rcx
  mov finish_rdx(%rip), %rdx
  mov finish_rsi(%rip), %rsi
  mov finish_rdi(%rip), %rdi
  mov finish_flags_low(%rip), %eax
  add $0x7f, %al
  sahf
  mov finish_rax(%rip), %rax
  jmp *finish_rip(%rip)
predump_finish_data:
finish_mask: .quad 0
finish_flags_low: .quad 0
finish_r15: .quad 0
finish_r14: .quad 0
finish_r13: .quad 0
finish_r12: .quad 0
finish_rbp: .quad 0
finish_rbx: .quad 0
finish_r11: .quad 0
finish_r10: .quad 0
finish_r9: .quad 0
finish_r8: .quad 0
finish_rcx: .quad 0
finish_rdx: .quad 0
finish_rsi: .quad 0
finish_rdi: .quad 0
finish_rax: .quad 0
finish_rip: .quad 0
predump_finish_end:
  .popsection
)");
extern "C" const std::byte predump_enter_begin[];
extern "C" const std::byte predump_enter_entry[];
extern "C" const std::byte predump_enter_end[];
extern "C" const std::byte predump_finish_begin[];
extern "C" const std::byte predump_finish_data[];
extern "C" const std::byte predump_finish_end[];

// Mirrors the data part above.
struct FinishData {
  uint64_t signal_mask;
  // al = 1 if the overflow flag is to be set (adding 0x7f then overflows), ah = the five flags that
  // sahf loads. All other flags are never changed by a program.
  uint64_t flags_low;
  uint64_t r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rcx, rdx, rsi, rdi, rax, rip;
};
static_assert(sizeof(FinishData) == 144);

size_t EnterBytes() { return static_cast<size_t>(predump_enter_end - predump_enter_begin); }
size_t FinishBytes() { return static_cast<size_t>(predump_finish_end - predump_finish_begin); }

}  // namespace

size_t InjectedProgramSize(size_t body_bytes) { return EnterBytes() + body_bytes + FinishBytes(); }

InjectedProgram BuildInjectedProgram(std::span<const std::byte> body,
                                     const user_regs_struct& resume, uint64_t signal_mask) {
  const user_regs_struct& r = resume;
  const FinishData data = {
      .signal_mask = signal_mask,
      .flags_low = (r.eflags & 0xff) << 8 | ((r.eflags & kOverflowFlag) != 0 ? 1u : 0u),
      .r15 = r.r15,
      .r14 = r.r14,
      .r13 = r.r13,
      .r12 = r.r12,
      .rbp = r.rbp,
      .rbx = r.rbx,
      .r11 = r.r11,
      .r10 = r.r10,
      .r9 = r.r9,
      .r8 = r.r8,
      .rcx = r.rcx,
      .rdx = r.rdx,
      .rsi = r.rsi,
      .rdi = r.rdi,
      .rax = r.rax,
      .rip = r.rip,
  };
  InjectedProgram program;
  program.entry = static_cast<size_t>(predump_enter_entry - predump_enter_begin);
  program.work = EnterBytes();
  program.bytes.assign(predump_enter_begin, predump_enter_end);
  program.bytes.insert(program.bytes.end(), body.begin(), body.end());
  const size_t finish = program.bytes.size();
  program.bytes.insert(program.bytes.end(), predump_finish_begin, predump_finish_end);
  memcpy(program.bytes.data() + finish + (predump_finish_data - predump_finish_begin), &data,
         sizeof data);
  return program;
}

absl::Status CheckMayRunProgram(const Tracee& thread, base::AddressRange padding) {
  PREDUMP_ASSIGN_OR_RETURN(const user_regs_struct registers, thread.GetRegisters());
  if (registers.cs != kCodeSegment64) {
    return absl::UnimplementedError(
        absl::StrCat("thread ", thread.tid(), " does not run 64-bit code"));
  }
  if (padding.Contains(base::RemoteAddress(registers.rip))) {
    return absl::FailedPreconditionError(
        absl::StrCat("thread ", thread.tid(), " has not left the program of an engine that died"));
  }
  PREDUMP_ASSIGN_OR_RETURN(const bool dispatched, thread.UsesSyscallUserDispatch());
  if (dispatched) {
    return absl::FailedPreconditionError(
        absl::StrCat("thread ", thread.tid(), " dispatches its system calls to a handler"));
  }
  return absl::OkStatus();
}

absl::Status EnterProgram(const Tracee& thread, const ProcessMemory& memory,
                          base::RemoteAddress place, const InjectedProgram& program,
                          const user_regs_struct& original) {
  PREDUMP_RETURN_IF_ERROR(memory.Write(place, program.bytes));
  // In this order: whatever happens after the first step, the program puts the mask back.
  user_regs_struct registers = original;
  registers.orig_rax = ~0ull;
  registers.rip = place.value() + program.entry;
  PREDUMP_RETURN_IF_ERROR(thread.SetRegisters(registers));
  PREDUMP_RETURN_IF_ERROR(thread.SetSignalMask(~0ull));
  registers.rip = place.value() + program.work;
  return thread.SetRegisters(registers);
}

}  // namespace predump::kernel
