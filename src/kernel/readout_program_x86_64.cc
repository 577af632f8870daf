#include "src/kernel/readout_program_x86_64.h"

#include <string.h>

namespace predump::kernel {
namespace {

// Numbers spelled out: 9 mmap, 39 getpid, 11 munmap. 0x2000: kReadoutPages
// pages, 0x100022 MAP_PRIVATE|MAP_ANONYMOUS|MAP_FIXED_NOREPLACE.
asm(R"(
  .pushsection .rodata
  .balign 64
  .globl predump_readout_begin, predump_readout_call, predump_readout_data, predump_readout_end
predump_readout_begin:
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
  jmp 90f
  .balign 8
predump_readout_data:
readout_scratch: .quad 0
90:
predump_readout_end:
  .popsection
)");
extern "C" const std::byte predump_readout_begin[];
extern "C" const std::byte predump_readout_call[];
extern "C" const std::byte predump_readout_data[];
extern "C" const std::byte predump_readout_end[];

size_t Offset(const std::byte* label) { return static_cast<size_t>(label - predump_readout_begin); }

}  // namespace

size_t ReadoutProgramSize() { return InjectedProgramSize(Offset(predump_readout_end)); }

ReadoutProgram BuildReadoutProgram(const ReadoutProgramInput& input) {
  std::vector<std::byte> body(predump_readout_begin, predump_readout_end);
  const uint64_t scratch = input.scratch.value();
  memcpy(body.data() + Offset(predump_readout_data), &scratch, sizeof scratch);
  ReadoutProgram readout;
  readout.program = BuildInjectedProgram(body, input.resume, input.signal_mask);
  readout.call = readout.program.work + Offset(predump_readout_call);
  return readout;
}

}  // namespace predump::kernel
