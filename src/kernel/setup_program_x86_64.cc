#include "src/kernel/setup_program_x86_64.h"

#include <string.h>

namespace predump::kernel {
namespace {

// Numbers spelled out: 14 rt_sigprocmask, 323 userfaultfd, 3 close, 9 mmap, 157 prctl, 11 munmap,
// 56 clone, 61 wait4, 60 exit, 436 close_range, 293 pipe2, 231 exit_group.
// 0x80800 O_CLOEXEC|O_NONBLOCK, 0x100022 MAP_PRIVATE|MAP_ANONYMOUS|MAP_FIXED_NOREPLACE,
// 0x500 CLONE_VM|CLONE_FILES, 0x40000000 __WALL, 37 PR_GET_CHILD_SUBREAPER.
asm(R"(
  .pushsection .rodata
  .balign 64
  .globl predump_setup_begin, predump_setup_entry, predump_setup_work, predump_setup_data
  .globl predump_setup_end
predump_setup_begin:
  .ascii "predump1"
predump_setup_entry:
  mov $14, %eax
  mov $2, %edi
  lea all_signals(%rip), %rsi
  xor %edx, %edx
  mov $8, %r10d
  syscall
predump_setup_work:
  cmpl $0, want_userfaultfd(%rip)
  je 20f
  mov $323, %eax
  mov $0x80800, %edi
  syscall
  cmp $-1, %eax
  jne 10f
  mov $323, %eax
  mov $0x80801, %edi
  syscall
10:
  test %eax, %eax
  js 20f
  mov %eax, %edi
  mov $3, %eax
  syscall
20:
  cmpl $0, want_helper(%rip)
  je 90f
  cmpl $0, ask_subreaper(%rip)
  je 30f
  mov $9, %eax
  mov free_page(%rip), %rdi
  mov $4096, %esi
  mov $3, %edx
  mov $0x100022, %r10d
  mov $-1, %r8
  xor %r9d, %r9d
  syscall
  cmp free_page(%rip), %rax
  jne 90f
  mov %rax, %rbp
  mov $157, %eax
  mov $37, %edi
  mov %rbp, %rsi
  xor %edx, %edx
  xor %r10d, %r10d
  xor %r8d, %r8d
  syscall
  mov (%rbp), %ebx
  mov $11, %eax
  mov %rbp, %rdi
  mov $4096, %esi
  syscall
  test %ebx, %ebx
  jne 90f
30:
  mov $56, %eax
  mov $0x500, %edi
  xor %esi, %esi
  xor %edx, %edx
  xor %r10d, %r10d
  xor %r8d, %r8d
  syscall
  test %rax, %rax
  js 90f
  jz 40f
  mov %eax, %edi
  mov $61, %eax
  xor %esi, %esi
  mov $0x40000000, %edx
  xor %r10d, %r10d
  syscall
90:
  mov $14, %eax
  mov $2, %edi
  lea old_mask(%rip), %rsi
  xor %edx, %edx
  mov $8, %r10d
  syscall
  mov saved_r15(%rip), %r15
  mov saved_r14(%rip), %r14
  mov saved_r13(%rip), %r13
  mov saved_r12(%rip), %r12
  mov saved_rbp(%rip), %rbp
  mov saved_rbx(%rip), %rbx
  mov saved_r11(%rip), %r11
  mov saved_r10(%rip), %r10
  mov saved_r9(%rip), %r9
  mov saved_r8(%rip), %r8
  mov saved_rcx(%rip), %rcx
  mov saved_rdx(%rip), %rdx
  mov saved_rsi(%rip), %rsi
  mov saved_rdi(%rip), %rdi
  mov flags_low(%rip), %eax
  add $0x7f, %al
  sahf
  mov saved_rax(%rip), %rax
  jmp *saved_rip(%rip)
40:
  mov $56, %eax
  mov $0x500, %edi
  xor %esi, %esi
  xor %edx, %edx
  xor %r10d, %r10d
  xor %r8d, %r8d
  syscall
  test %rax, %rax
  jz 50f
  xor %edi, %edi
  test %rax, %rax
  jns 41f
  mov %eax, %edi
  neg %edi
41:
  mov $60, %eax
  syscall
  jmp 41b
50:
  mov $436, %eax
  xor %edi, %edi
  mov $-1, %esi
  mov $2, %edx
  syscall
  test %eax, %eax
  jnz 60f
  mov $9, %eax
  mov free_page(%rip), %rdi
  mov $4096, %esi
  mov $3, %edx
  mov $0x100022, %r10d
  mov $-1, %r8
  xor %r9d, %r9d
  syscall
  cmp free_page(%rip), %rax
  jne 60f
  mov %rax, %rbp
  mov $293, %eax
  mov %rbp, %rdi
  mov $0x80000, %esi
  syscall
  mov %eax, %ebx
  mov (%rbp), %r12
  mov $11, %eax
  mov %rbp, %rdi
  mov $4096, %esi
  syscall
60:
  mov $231, %eax
  syscall
  jmp 60b
  .balign 8
predump_setup_data:
all_signals: .quad -1
old_mask: .quad 0
free_page: .quad 0
want_userfaultfd: .long 0
want_helper: .long 0
ask_subreaper: .long 0
flags_low: .long 0
saved_r15: .quad 0
saved_r14: .quad 0
saved_r13: .quad 0
saved_r12: .quad 0
saved_rbp: .quad 0
saved_rbx: .quad 0
saved_r11: .quad 0
saved_r10: .quad 0
saved_r9: .quad 0
saved_r8: .quad 0
saved_rcx: .quad 0
saved_rdx: .quad 0
saved_rsi: .quad 0
saved_rdi: .quad 0
saved_rax: .quad 0
saved_rip: .quad 0
predump_setup_end:
  .popsection
)");
extern "C" const std::byte predump_setup_begin[];
extern "C" const std::byte predump_setup_entry[];
extern "C" const std::byte predump_setup_work[];
extern "C" const std::byte predump_setup_data[];
extern "C" const std::byte predump_setup_end[];

// Mirrors the data part above.
struct ProgramData {
  uint64_t all_signals;
  uint64_t old_mask;
  uint64_t free_page;
  uint32_t want_userfaultfd;
  uint32_t want_helper;
  uint32_t ask_subreaper;
  // al = 1 if the overflow flag is to be set (adding 0x7f then overflows), ah = the five flags that
  // sahf loads. All other flags are never changed by the program.
  uint32_t flags_low;
  uint64_t r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rcx, rdx, rsi, rdi, rax, rip;
};
static_assert(sizeof(ProgramData) == 168);

constexpr uint64_t kOverflowFlag = 1u << 11;

}  // namespace

size_t SetupProgramSize() { return static_cast<size_t>(predump_setup_end - predump_setup_begin); }

SetupProgram BuildSetupProgram(const SetupProgramInput& input) {
  SetupProgram program;
  program.bytes.assign(predump_setup_begin, predump_setup_end);
  program.entry = static_cast<size_t>(predump_setup_entry - predump_setup_begin);
  program.work = static_cast<size_t>(predump_setup_work - predump_setup_begin);
  const user_regs_struct& r = input.resume;
  const ProgramData data = {
      .all_signals = ~0ull,
      .old_mask = input.signal_mask,
      .free_page = input.free_page.value(),
      .want_userfaultfd = input.userfaultfd,
      .want_helper = input.helper,
      .ask_subreaper = input.ask_subreaper,
      .flags_low =
          static_cast<uint32_t>((r.eflags & 0xff) << 8 | ((r.eflags & kOverflowFlag) != 0 ? 1 : 0)),
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
  memcpy(program.bytes.data() + (predump_setup_data - predump_setup_begin), &data, sizeof data);
  return program;
}

}  // namespace predump::kernel
