// What the processor offers to programs, as far as a program may have come to rely on it.
//
// Only features that change what instructions do are kept: a target may lack a power saving state
// or a virtualization feature that the source has.
// Thread rule: pure.
#ifndef PREDUMP_CHECKPOINT_CPU_H_
#define PREDUMP_CHECKPOINT_CPU_H_

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace predump::checkpoint {

// The feature words, in the order in which HostFacts.cpuid_features carries them. New words go to
// the end; the order is published.
enum CpuidWord : int {
  kLeaf1Ecx,
  kLeaf1Edx,
  kLeaf7Ebx,
  kLeaf7Ecx,
  kLeaf7Edx,
  kLeaf7Sub1Eax,
  kLeaf7Sub1Edx,
  kXsaveEax,      // leaf 0xd, subleaf 1
  kExtended1Ecx,  // leaf 0x80000001
  kExtended1Edx,
  kExtended8Ebx,  // leaf 0x80000008
  kCpuidWords,
};

struct CpuFacts {
  std::string vendor;  // "GenuineIntel"
  std::array<uint32_t, kCpuidWords> features = {};
  uint64_t xstate_features = 0;  // XCR0
  uint32_t xsave_bytes = 0;      // of a full area in standard format, for the features above
};

// Where one component lies in an XSAVE area of standard format (CPUID leaf 0xd). bytes == 0: the
// processor has none.
struct XsaveComponent {
  uint32_t offset = 0;
  uint32_t bytes = 0;
};

CpuFacts ReadCpuFacts();
XsaveComponent XsaveComponentLayout(int component);

// Names of the features (as /proc/cpuinfo spells them) that `have` lists and `offered` lacks. Words
// that one side does not know count as zero.
std::vector<std::string> MissingCpuFeatures(std::span<const uint32_t> have,
                                            std::span<const uint32_t> offered);

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_CPU_H_
