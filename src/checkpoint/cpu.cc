#include "src/checkpoint/cpu.h"

#include <cpuid.h>

#include <cstddef>
#include <cstring>

namespace predump::checkpoint {
namespace {

struct Feature {
  CpuidWord word;
  int bit;
  const char* name;
};

// Features a program can use without the kernel's help, Intel SDM volume 2 and AMD APM volume 3,
// CPUID. Names as in arch/x86/include/asm/cpufeatures.h.
constexpr Feature kFeatures[] = {
    {kLeaf1Ecx, 0, "sse3"},
    {kLeaf1Ecx, 1, "pclmulqdq"},
    {kLeaf1Ecx, 9, "ssse3"},
    {kLeaf1Ecx, 12, "fma"},
    {kLeaf1Ecx, 13, "cx16"},
    {kLeaf1Ecx, 19, "sse4_1"},
    {kLeaf1Ecx, 20, "sse4_2"},
    {kLeaf1Ecx, 22, "movbe"},
    {kLeaf1Ecx, 23, "popcnt"},
    {kLeaf1Ecx, 25, "aes"},
    {kLeaf1Ecx, 26, "xsave"},
    {kLeaf1Ecx, 27, "osxsave"},
    {kLeaf1Ecx, 28, "avx"},
    {kLeaf1Ecx, 29, "f16c"},
    {kLeaf1Ecx, 30, "rdrand"},
    {kLeaf1Edx, 0, "fpu"},
    {kLeaf1Edx, 4, "tsc"},
    {kLeaf1Edx, 8, "cx8"},
    {kLeaf1Edx, 15, "cmov"},
    {kLeaf1Edx, 19, "clflush"},
    {kLeaf1Edx, 23, "mmx"},
    {kLeaf1Edx, 24, "fxsr"},
    {kLeaf1Edx, 25, "sse"},
    {kLeaf1Edx, 26, "sse2"},
    {kLeaf7Ebx, 0, "fsgsbase"},
    {kLeaf7Ebx, 3, "bmi1"},
    {kLeaf7Ebx, 4, "hle"},
    {kLeaf7Ebx, 5, "avx2"},
    {kLeaf7Ebx, 8, "bmi2"},
    {kLeaf7Ebx, 9, "erms"},
    {kLeaf7Ebx, 11, "rtm"},
    {kLeaf7Ebx, 14, "mpx"},
    {kLeaf7Ebx, 16, "avx512f"},
    {kLeaf7Ebx, 17, "avx512dq"},
    {kLeaf7Ebx, 18, "rdseed"},
    {kLeaf7Ebx, 19, "adx"},
    {kLeaf7Ebx, 21, "avx512ifma"},
    {kLeaf7Ebx, 23, "clflushopt"},
    {kLeaf7Ebx, 24, "clwb"},
    {kLeaf7Ebx, 26, "avx512pf"},
    {kLeaf7Ebx, 27, "avx512er"},
    {kLeaf7Ebx, 28, "avx512cd"},
    {kLeaf7Ebx, 29, "sha_ni"},
    {kLeaf7Ebx, 30, "avx512bw"},
    {kLeaf7Ebx, 31, "avx512vl"},
    {kLeaf7Ecx, 0, "prefetchwt1"},
    {kLeaf7Ecx, 1, "avx512vbmi"},
    {kLeaf7Ecx, 3, "pku"},
    {kLeaf7Ecx, 4, "ospke"},
    {kLeaf7Ecx, 5, "waitpkg"},
    {kLeaf7Ecx, 6, "avx512_vbmi2"},
    {kLeaf7Ecx, 8, "gfni"},
    {kLeaf7Ecx, 9, "vaes"},
    {kLeaf7Ecx, 10, "vpclmulqdq"},
    {kLeaf7Ecx, 11, "avx512_vnni"},
    {kLeaf7Ecx, 12, "avx512_bitalg"},
    {kLeaf7Ecx, 14, "avx512_vpopcntdq"},
    {kLeaf7Ecx, 22, "rdpid"},
    {kLeaf7Ecx, 25, "cldemote"},
    {kLeaf7Ecx, 27, "movdiri"},
    {kLeaf7Ecx, 28, "movdir64b"},
    {kLeaf7Edx, 2, "avx512_4vnniw"},
    {kLeaf7Edx, 3, "avx512_4fmaps"},
    {kLeaf7Edx, 4, "fsrm"},
    {kLeaf7Edx, 8, "avx512_vp2intersect"},
    {kLeaf7Edx, 14, "serialize"},
    {kLeaf7Edx, 16, "tsxldtrk"},
    {kLeaf7Edx, 22, "amx_bf16"},
    {kLeaf7Edx, 23, "avx512_fp16"},
    {kLeaf7Edx, 24, "amx_tile"},
    {kLeaf7Edx, 25, "amx_int8"},
    {kLeaf7Sub1Eax, 0, "sha512"},
    {kLeaf7Sub1Eax, 1, "sm3"},
    {kLeaf7Sub1Eax, 2, "sm4"},
    {kLeaf7Sub1Eax, 4, "avx_vnni"},
    {kLeaf7Sub1Eax, 5, "avx512_bf16"},
    {kLeaf7Sub1Eax, 7, "cmpccxadd"},
    {kLeaf7Sub1Eax, 21, "amx_fp16"},
    {kLeaf7Sub1Eax, 23, "avx_ifma"},
    {kLeaf7Sub1Edx, 4, "avx_vnni_int8"},
    {kLeaf7Sub1Edx, 5, "avx_ne_convert"},
    {kLeaf7Sub1Edx, 8, "amx_complex"},
    {kLeaf7Sub1Edx, 10, "avx_vnni_int16"},
    {kLeaf7Sub1Edx, 14, "prefetchiti"},
    {kXsaveEax, 0, "xsaveopt"},
    {kXsaveEax, 1, "xsavec"},
    {kXsaveEax, 2, "xgetbv1"},
    {kExtended1Ecx, 0, "lahf_lm"},
    {kExtended1Ecx, 5, "abm"},
    {kExtended1Ecx, 6, "sse4a"},
    {kExtended1Ecx, 8, "3dnowprefetch"},
    {kExtended1Ecx, 11, "xop"},
    {kExtended1Ecx, 16, "fma4"},
    {kExtended1Ecx, 21, "tbm"},
    {kExtended1Edx, 11, "syscall"},
    {kExtended1Edx, 22, "mmxext"},
    {kExtended1Edx, 27, "rdtscp"},
    {kExtended1Edx, 29, "lm"},
    {kExtended1Edx, 30, "3dnowext"},
    {kExtended1Edx, 31, "3dnow"},
    {kExtended8Ebx, 0, "clzero"},
};

struct Registers {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
};

Registers Cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

uint64_t ReadXcr0() {
  uint32_t low;
  uint32_t high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

}  // namespace

CpuFacts ReadCpuFacts() {
  CpuFacts facts;
  const Registers base = Cpuid(0, 0);
  char vendor[12];
  std::memcpy(vendor, &base.ebx, 4);
  std::memcpy(vendor + 4, &base.edx, 4);
  std::memcpy(vendor + 8, &base.ecx, 4);
  facts.vendor.assign(vendor, sizeof vendor);

  const Registers leaf1 = Cpuid(1, 0);
  const Registers leaf7 = Cpuid(7, 0);
  const Registers leaf7_1 = leaf7.eax >= 1 ? Cpuid(7, 1) : Registers{};
  const Registers extended1 = Cpuid(0x80000001, 0);
  const Registers extended8 = Cpuid(0x80000008, 0);
  facts.features = {leaf1.ecx,     leaf1.edx,     leaf7.ebx,    leaf7.ecx,
                    leaf7.edx,     leaf7_1.eax,   leaf7_1.edx,  Cpuid(0xd, 1).eax,
                    extended1.ecx, extended1.edx, extended8.ebx};
  constexpr uint32_t kOsxsave = 1u << 27;
  if ((leaf1.ecx & kOsxsave) != 0) {
    facts.xstate_features = ReadXcr0();
    facts.xsave_bytes = Cpuid(0xd, 0).ebx;
  }
  return facts;
}

XsaveComponent XsaveComponentLayout(int component) {
  const Registers r = Cpuid(0xd, static_cast<unsigned>(component));
  return {.offset = r.ebx, .bytes = r.eax};
}

std::vector<std::string> MissingCpuFeatures(std::span<const uint32_t> have,
                                            std::span<const uint32_t> offered) {
  const auto has = [](std::span<const uint32_t> words, const Feature& feature) {
    const size_t word = static_cast<size_t>(feature.word);
    return word < words.size() && (words[word] >> feature.bit & 1) != 0;
  };
  std::vector<std::string> missing;
  for (const Feature& feature : kFeatures) {
    if (has(have, feature) && !has(offered, feature)) missing.emplace_back(feature.name);
  }
  return missing;
}

}  // namespace predump::checkpoint
