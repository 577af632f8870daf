#include "src/kernel/setup_program_x86_64.h"

#include <string.h>

namespace predump::kernel {
namespace {

// Numbers spelled out: 323 userfaultfd, 3 close, 9 mmap, 157 prctl, 11 munmap,
// 56 clone, 61 wait4, 60 exit, 436 close_range, 293 pipe2, 231 exit_group.
// 0x80800 O_CLOEXEC|O_NONBLOCK, 0x100022 MAP_PRIVATE|MAP_ANONYMOUS|MAP_FIXED_NOREPLACE,
// 0x500 CLONE_VM|CLONE_FILES, 0x40000000 __WALL, 37 PR_GET_CHILD_SUBREAPER.
asm(R"(
  .pushsection .rodata
  .balign 64
  .globl predump_setup_begin, predump_setup_data, predump_setup_end
predump_setup_begin:
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
  jmp 90f
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
free_page: .quad 0
want_userfaultfd: .long 0
want_helper: .long 0
ask_subreaper: .quad 0
90:
predump_setup_end:
  .popsection
)");
extern "C" const std::byte predump_setup_begin[];
extern "C" const std::byte predump_setup_data[];
extern "C" const std::byte predump_setup_end[];

// Mirrors the data part above.
struct ProgramData {
  uint64_t free_page;
  uint32_t want_userfaultfd;
  uint32_t want_helper;
  uint64_t ask_subreaper;
};
static_assert(sizeof(ProgramData) == 24);

}  // namespace

size_t SetupProgramSize() {
  return InjectedProgramSize(static_cast<size_t>(predump_setup_end - predump_setup_begin));
}

InjectedProgram BuildSetupProgram(const SetupProgramInput& input) {
  std::vector<std::byte> body(predump_setup_begin, predump_setup_end);
  const ProgramData data = {.free_page = input.free_page.value(),
                            .want_userfaultfd = input.userfaultfd,
                            .want_helper = input.helper,
                            .ask_subreaper = input.ask_subreaper};
  memcpy(body.data() + (predump_setup_data - predump_setup_begin), &data, sizeof data);
  return BuildInjectedProgram(body, input.resume, input.signal_mask);
}

}  // namespace predump::kernel
