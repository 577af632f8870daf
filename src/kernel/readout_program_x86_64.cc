#include "src/kernel/readout_program_x86_64.h"

#include <string.h>

namespace predump::kernel {
namespace {

// Numbers spelled out: 14 rt_sigprocmask, 9 mmap, 39 getpid, 11 munmap. 0x2000: kReadoutPages
// pages, 0x100022 MAP_PRIVATE|MAP_ANONYMOUS|MAP_FIXED_NOREPLACE.
asm(R"(
  .pushsection .rodata
  .balign 64
  .globl predump_readout_begin, predump_readout_entry, predump_readout_work, predump_readout_call
  .globl predump_readout_data, predump_readout_end
predump_readout_begin:
  .ascii "predump1"
predump_readout_entry:
  mov $14, %eax
  mov $2, %edi
  lea readout_all_signals(%rip), %rsi
  xor %edx, %edx
  mov $8, %r10d
  syscall
predump_readout_work:
  mov $9, %eax
  mov readout_scratch(%rip), %rdi
  mov $0x2000, %esi
  mov $3, %edx
  mov $0x100022, %r10d
  mov $-1, %r8
  xor %r9d, %r9d
  syscall
  cmp readout_scratch(%rip), %rax
  jne 90f
  mov $39, %eax
predump_readout_call:
  syscall
  mov $11, %eax
  mov readout_scratch(%rip), %rdi
  mov $0x2000, %esi
  syscall
90:
  mov $14, %eax
  mov $2, %edi
  lea readout_old_mask(%rip), %rsi
  xor %edx, %edx
  mov $8, %r10d
  syscall
  mov readout_r15(%rip), %r15
  mov readout_r14(%rip), %r14
  mov readout_r13(%rip), %r13
  mov readout_r12(%rip), %r12
  mov readout_rbp(%rip), %rbp
  mov readout_rbx(%rip), %rbx
  mov readout_r11(%rip), %r11
  mov readout_r10(%rip), %r10
  mov readout_r9(%rip), %r9
  mov readout_r8(%rip), %r8
  mov readout_rcx(%rip), %rcx
  mov readout_rdx(%rip), %rdx
  mov readout_rsi(%rip), %rsi
  mov readout_rdi(%rip), %rdi
  mov readout_flags_low(%rip), %eax
  add $0x7f, %al
  sahf
  mov readout_rax(%rip), %rax
  jmp *readout_rip(%rip)
  .balign 8
predump_readout_data:
readout_all_signals: .quad -1
readout_old_mask: .quad 0
readout_scratch: .quad 0
readout_flags_low: .quad 0
readout_r15: .quad 0
readout_r14: .quad 0
readout_r13: .quad 0
readout_r12: .quad 0
readout_rbp: .quad 0
readout_rbx: .quad 0
readout_r11: .quad 0
readout_r10: .quad 0
readout_r9: .quad 0
readout_r8: .quad 0
readout_rcx: .quad 0
readout_rdx: .quad 0
readout_rsi: .quad 0
readout_rdi: .quad 0
readout_rax: .quad 0
readout_rip: .quad 0
predump_readout_end:
  .popsection
)");
extern "C" const std::byte predump_readout_begin[];
extern "C" const std::byte predump_readout_entry[];
extern "C" const std::byte predump_readout_work[];
extern "C" const std::byte predump_readout_call[];
extern "C" const std::byte predump_readout_data[];
extern "C" const std::byte predump_readout_end[];

// Mirrors the data part above.
struct ProgramData {
  uint64_t all_signals;
  uint64_t old_mask;
  uint64_t scratch;
  // al = 1 if the overflow flag is to be set (adding 0x7f then overflows), ah = the five flags that
  // sahf loads. All other flags are never changed by the program.
  uint64_t flags_low;
  uint64_t r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rcx, rdx, rsi, rdi, rax, rip;
};
static_assert(sizeof(ProgramData) == 160);

constexpr uint64_t kOverflowFlag = 1u << 11;

size_t Offset(const std::byte* label) { return static_cast<size_t>(label - predump_readout_begin); }

}  // namespace

size_t ReadoutProgramSize() { return Offset(predump_readout_end); }

ReadoutProgram BuildReadoutProgram(const ReadoutProgramInput& input) {
  ReadoutProgram program;
  program.bytes.assign(predump_readout_begin, predump_readout_end);
  program.entry = Offset(predump_readout_entry);
  program.work = Offset(predump_readout_work);
  program.call = Offset(predump_readout_call);
  const user_regs_struct& r = input.resume;
  const ProgramData data = {
      .all_signals = ~0ull,
      .old_mask = input.signal_mask,
      .scratch = input.scratch.value(),
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
  memcpy(program.bytes.data() + Offset(predump_readout_data), &data, sizeof data);
  return program;
}

}  // namespace predump::kernel
