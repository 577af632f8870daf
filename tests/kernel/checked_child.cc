#include "tests/kernel/checked_child.h"

#include <fcntl.h>
#include <sys/rseq.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>

#include "gtest/gtest.h"
#include "src/kernel/process_memory.h"
#include "src/kernel/procfs_maps.h"
#include "src/kernel/vdso_padding.h"

namespace predump::kernel {

void ComputeAndCheck(std::atomic<long>& steps, std::atomic<long>& wrong, Threads threads) {
  unsigned long hash = 1;
  for (long n = 0;; ++n) {
    unsigned long values[64];
    for (unsigned long i = 0; i < 64; ++i) values[i] = hash + i * i;
    hash = hash * 6364136223846793005ul + 1442695040888963407ul;
    unsigned long left = 0;
    for (unsigned long i = 0; i < 64; ++i) left ^= (values[i] - i * i) ^ values[0];
    if (left != 0) ++wrong;
    const struct timespec nap = {0, 20'000};
    if (n % 50 == 0 && ::nanosleep(&nap, nullptr) != 0) ++wrong;
    if (n % 33 == 0 && ::getppid() <= 0) ++wrong;
    const bool asks_for_children = threads == Threads::kOne && n % 77 == 0;
    if (asks_for_children && ::waitpid(-1, nullptr, WNOHANG | __WALL) != -1) ++wrong;
    ++steps;
  }
}

// The stack holds the address it counts at.
[[noreturn]] void SpinWithEveryRegister(std::atomic<long>& steps) {
  asm volatile(
      "push %0\n"
      "mov $1, %%eax\n mov $2, %%ebx\n mov $3, %%ecx\n mov $4, %%edx\n mov $5, %%esi\n"
      "mov $6, %%edi\n mov $7, %%ebp\n mov $8, %%r8d\n mov $9, %%r9d\n mov $10, %%r10d\n"
      "mov $11, %%r11d\n mov $12, %%r12d\n mov $13, %%r13d\n mov $14, %%r14d\n mov $15, %%r15d\n"
      "1:\n"
      "cmp $1, %%rax\n jne 2f\n cmp $2, %%rbx\n jne 2f\n cmp $3, %%rcx\n jne 2f\n"
      "cmp $4, %%rdx\n jne 2f\n cmp $5, %%rsi\n jne 2f\n cmp $6, %%rdi\n jne 2f\n"
      "cmp $7, %%rbp\n jne 2f\n cmp $8, %%r8\n jne 2f\n cmp $9, %%r9\n jne 2f\n"
      "cmp $10, %%r10\n jne 2f\n cmp $11, %%r11\n jne 2f\n cmp $12, %%r12\n jne 2f\n"
      "cmp $13, %%r13\n jne 2f\n cmp $14, %%r14\n jne 2f\n cmp $15, %%r15\n jne 2f\n"
      "push %%rax\n mov 8(%%rsp), %%rax\n incq (%%rax)\n pop %%rax\n"
      "jmp 1b\n"
      "2: ud2\n"
      :
      : "r"(&steps)
      : "memory");
  __builtin_unreachable();
}

extern "C" char rseq_test_start[], rseq_test_end[], rseq_test_abort[];

[[noreturn]] void SpinInsideRestartableSequence(RseqState& state) {
  struct alignas(32) Section {
    uint32_t version, flags;
    uint64_t start, length, abort;
  };
  static Section section;
  section = {0, 0, reinterpret_cast<uint64_t>(rseq_test_start),
             static_cast<uint64_t>(rseq_test_end - rseq_test_start),
             reinterpret_cast<uint64_t>(rseq_test_abort)};
  char* area = static_cast<char*>(__builtin_thread_pointer()) + __rseq_offset;
  for (;;) {
    int aborted = 0;
    asm volatile(
        "movq %[section], 8(%[area])\n"
        ".globl rseq_test_start, rseq_test_end, rseq_test_abort\n"
        "rseq_test_start:\n"
        "incq (%[spins])\n"
        "cmpq $0, (%[release])\n"
        "je rseq_test_start\n"
        "rseq_test_end:\n"
        "jmp 2f\n"
        ".byte 0x0f, 0xb9, 0x3d\n"
        ".long 0x53053053\n"
        "rseq_test_abort:\n"
        "movl $1, %[aborted]\n"
        "2:\n"
        : [aborted] "+r"(aborted)
        : [section] "r"(&section), [area] "r"(area), [spins] "r"(&state.spins),
          [release] "r"(&state.release)
        : "memory", "cc");
    if (aborted != 0) ++state.aborts;
  }
}

std::vector<std::byte> ReadPadding(const ProcessHandle& process) {
  const auto maps = ReadMaps(process);
  const auto memory = ProcessMemory::Open(process, O_RDONLY);
  const auto padding = FindVdsoPadding(*maps, *memory);
  EXPECT_TRUE(padding.ok()) << padding.status();
  std::vector<std::byte> bytes(padding->size().value());
  EXPECT_TRUE(memory->ReadExactly(padding->start(), bytes).ok());
  return bytes;
}

bool AllZero(const std::vector<std::byte>& bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

}  // namespace predump::kernel
