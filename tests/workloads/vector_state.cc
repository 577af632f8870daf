#include "tests/workloads/vector_state.h"

#include <stddef.h>

#include <array>

namespace predump::workloads {
namespace {

// What the registers are loaded from and stored to. Offsets are used by the assembly below.
struct alignas(64) Registers {
  std::array<uint64_t, 32 * 8> vectors;  // 64 bytes per register
  std::array<uint64_t, 8> masks;         // at 2048: k0 (unused) to k7
  std::array<int64_t, 4> x87;            // at 2112: integers, exact in an 80-bit register
};

// The assembler sees numbers, so each register is spelled out.
#define PREDUMP_EACH_0_TO_15(f) \
  f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11) f(12) f(13) f(14) f(15)
#define PREDUMP_EACH_16_TO_31(f) \
  f(16) f(17) f(18) f(19) f(20) f(21) f(22) f(23) f(24) f(25) f(26) f(27) f(28) f(29) f(30) f(31)
#define PREDUMP_EACH_1_TO_7(f) f(1) f(2) f(3) f(4) f(5) f(6) f(7)

#define PREDUMP_LOAD_ZMM(n) "vmovdqu64 64*" #n "(%[in]), %%zmm" #n "\n\t"
#define PREDUMP_STORE_ZMM(n) "vmovdqu64 %%zmm" #n ", 64*" #n "(%[out])\n\t"
#define PREDUMP_LOAD_MASK(n) "kmovq 2048+8*" #n "(%[in]), %%k" #n "\n\t"
#define PREDUMP_STORE_MASK(n) "kmovq %%k" #n ", 2048+8*" #n "(%[out])\n\t"
#define PREDUMP_LOAD_YMM(n) "vmovdqu 64*" #n "(%[in]), %%ymm" #n "\n\t"
#define PREDUMP_STORE_YMM(n) "vmovdqu %%ymm" #n ", 64*" #n "(%[out])\n\t"
#define PREDUMP_LOAD_XMM(n) "movdqu 64*" #n "(%[in]), %%xmm" #n "\n\t"
#define PREDUMP_STORE_XMM(n) "movdqu %%xmm" #n ", 64*" #n "(%[out])\n\t"

#define PREDUMP_LOAD_X87 \
  "fildll 2112(%[in])\n\t fildll 2120(%[in])\n\t fildll 2128(%[in])\n\t fildll 2136(%[in])\n\t"
#define PREDUMP_STORE_X87                                                      \
  "fistpll 2136(%[out])\n\t fistpll 2128(%[out])\n\t fistpll 2120(%[out])\n\t" \
  "fistpll 2112(%[out])\n\t"
// With `corrupt` the register is changed while it is live, as a lost state would.
#define PREDUMP_SPIN                          \
  "test %[corrupt], %[corrupt]\n\t jz 1f\n\t" \
  "pxor %%xmm3, %%xmm3\n\t"                   \
  "1: dec %[spins]\n\t jnz 1b\n\t"
#define PREDUMP_OPERANDS                                                                     \
  : [spins] "+r"(spins)                                                                         \
  : [in] "r"(&in), [out] "r"(&out), [corrupt] "r"(corrupt)                                      \
  : "memory", "cc", "st", "st(1)", "st(2)", "st(3)", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4",     \
    "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

// Each leaves untouched what it has no registers for. The code around is compiled for plain
// x86-64, so the upper halves, zmm16 and up and the masks belong to us.
void RoundTripAvx512(const Registers& in, Registers& out, uint64_t spins, uint64_t corrupt) {
  asm volatile(PREDUMP_EACH_0_TO_15(PREDUMP_LOAD_ZMM) PREDUMP_EACH_16_TO_31(PREDUMP_LOAD_ZMM)
                   PREDUMP_EACH_1_TO_7(PREDUMP_LOAD_MASK)
                       PREDUMP_LOAD_X87 PREDUMP_SPIN PREDUMP_EACH_0_TO_15(PREDUMP_STORE_ZMM)
                           PREDUMP_EACH_16_TO_31(PREDUMP_STORE_ZMM)
                               PREDUMP_EACH_1_TO_7(PREDUMP_STORE_MASK) PREDUMP_STORE_X87
               "vzeroupper\n\t" PREDUMP_OPERANDS);
}

void RoundTripAvx(const Registers& in, Registers& out, uint64_t spins, uint64_t corrupt) {
  asm volatile(PREDUMP_EACH_0_TO_15(PREDUMP_LOAD_YMM)
                   PREDUMP_LOAD_X87 PREDUMP_SPIN PREDUMP_EACH_0_TO_15(PREDUMP_STORE_YMM)
                       PREDUMP_STORE_X87 "vzeroupper\n\t" PREDUMP_OPERANDS);
}

void RoundTripSse(const Registers& in, Registers& out, uint64_t spins, uint64_t corrupt) {
  asm volatile(PREDUMP_EACH_0_TO_15(PREDUMP_LOAD_XMM)
                   PREDUMP_LOAD_X87 PREDUMP_SPIN PREDUMP_EACH_0_TO_15(PREDUMP_STORE_XMM)
                       PREDUMP_STORE_X87 PREDUMP_OPERANDS);
}

}  // namespace

const char* FindLostRegister(uint64_t seed, uint64_t spins, bool corrupt) {
  static_assert(offsetof(Registers, masks) == 2048 && offsetof(Registers, x87) == 2112);
  Registers in;
  for (size_t i = 0; i < in.vectors.size(); ++i) in.vectors[i] = seed * 0x9E3779B97F4A7C15u + i;
  for (size_t i = 0; i < in.masks.size(); ++i) in.masks[i] = seed ^ (i * 0xD6E8FEB86659FD93u);
  for (size_t i = 0; i < in.x87.size(); ++i) in.x87[i] = static_cast<int64_t>((seed >> 2) + i);
  Registers out = in;

  const bool avx512 =
      __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0;
  if (spins == 0) spins = 1;
  if (avx512) {
    RoundTripAvx512(in, out, spins, corrupt ? 1 : 0);
  } else if (__builtin_cpu_supports("avx") != 0) {
    RoundTripAvx(in, out, spins, corrupt ? 1 : 0);
  } else {
    RoundTripSse(in, out, spins, corrupt ? 1 : 0);
  }
  if (out.vectors != in.vectors) return "vector register";
  if (out.masks != in.masks) return "mask register";
  if (out.x87 != in.x87) return "x87 register";
  return nullptr;
}

}  // namespace predump::workloads
