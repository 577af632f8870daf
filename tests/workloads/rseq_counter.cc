#include "tests/workloads/rseq_counter.h"

#include <errno.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace predump::workloads {
namespace {

struct rseq* ThisThreadsArea() {
  auto* thread_pointer = static_cast<char*>(__builtin_thread_pointer());
  return reinterpret_cast<struct rseq*>(thread_pointer + __rseq_offset);
}

}  // namespace

RseqCounter::RseqCounter()
    : cpus_(static_cast<size_t>(sysconf(_SC_NPROCESSORS_CONF))), slots_(new Slot[cpus_]()) {}

uint64_t RseqCounter::Increment(uint64_t spins) {
  struct rseq* area = ThisThreadsArea();
  uint64_t aborts = 0;
  for (;; ++aborts) {
    // From 1 to 2 is the sequence; the store before 2 commits it. The abort handler is preceded by
    // the signature glibc registered (RSEQ_SIG), disguised as an instruction.
    asm goto(
        ".pushsection __rseq_cs, \"aw\"\n\t"
        ".balign 32\n\t"
        "3: .long 0, 0\n\t"
        ".quad 1f, 2f - 1f, 4f\n\t"
        ".popsection\n\t"
        "leaq 3b(%%rip), %%rax\n\t"
        "movq %%rax, %c[cs](%[area])\n\t"
        "1: movl %c[cpu](%[area]), %%eax\n\t"
        "shlq $6, %%rax\n\t"
        "addq %[slots], %%rax\n\t"
        "movq (%%rax), %%rcx\n\t"
        "movq %[spins], %%rdx\n\t"
        "5: decq %%rdx\n\t"
        "jns 5b\n\t"
        "incq %%rcx\n\t"
        "movq %%rcx, (%%rax)\n\t"
        "2:\n\t"
        ".pushsection __rseq_abort, \"ax\"\n\t"
        ".byte 0x0f, 0xb9, 0x3d\n\t"
        ".long %c[signature]\n\t"
        "4: jmp %l[aborted]\n\t"
        ".popsection\n\t"
        :
        : [area] "r"(area), [slots] "r"(slots_.get()), [spins] "r"(spins),
          [cs] "i"(offsetof(struct rseq, rseq_cs)), [cpu] "i"(offsetof(struct rseq, cpu_id)),
          [signature] "i"(RSEQ_SIG)
        : "rax", "rcx", "rdx", "cc", "memory"
        : aborted);
    return aborts;
  aborted:;
  }
}

uint64_t RseqCounter::Sum() const {
  uint64_t sum = 0;
  for (size_t cpu = 0; cpu < cpus_; ++cpu) sum += slots_[cpu].count;
  return sum;
}

bool RseqIsRegistered() {
  if (__rseq_size == 0) return false;
  // Registering the same area again is refused with EBUSY exactly where it is registered. The
  // kernel compares the length it was given, which is at least 32 whatever __rseq_size says.
  const unsigned length = __rseq_size < 32 ? 32 : __rseq_size;
  const long result = syscall(SYS_rseq, ThisThreadsArea(), length, 0, RSEQ_SIG);
  return result == -1 && errno == EBUSY;
}

}  // namespace predump::workloads
