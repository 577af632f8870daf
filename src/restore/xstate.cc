#include "src/restore/xstate.h"

#include <cpuid.h>
#include <string.h>

#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"

namespace predump::restore::internal {
namespace {

// Intel SDM volume 1, 13.4: legacy region, header, then components at offsets CPUID tells.
constexpr size_t kSt0Offset = 32;
constexpr size_t kXmm0Offset = 160;
constexpr size_t kHeaderOffset = 512;
constexpr size_t kSmallestArea = 576;
constexpr uint64_t kLegacyComponents = 3;  // x87 and SSE

template <typename Words>
void CopyWords(const Words& words, std::byte* to, size_t most_bytes) {
  const size_t bytes =
      std::min(static_cast<size_t>(words.size()) * sizeof(words.Get(0)), most_bytes);
  if (bytes != 0) ::memcpy(to, words.data(), bytes);
}

// Writes one component; false where this processor has no room for it.
template <typename Words>
bool CopyComponent(unsigned component, const Words& words, std::span<std::byte> area) {
  unsigned size = 0;
  unsigned offset = 0;
  unsigned c = 0;
  unsigned d = 0;
  if (__get_cpuid_count(0xd, component, &size, &offset, &c, &d) == 0 || size == 0 ||
      offset + size > area.size()) {
    return false;
  }
  CopyWords(words, area.data() + offset, size);
  return true;
}

void CopyLegacy(const criu::user_x86_fpregs_entry& fpu, std::span<std::byte> area) {
  struct Start {
    uint16_t cwd, swd, twd, fop;
    uint64_t rip, rdp;
    uint32_t mxcsr, mxcsr_mask;
  };
  static_assert(sizeof(Start) == kSt0Offset);
  Start start = {};
  start.cwd = static_cast<uint16_t>(fpu.cwd());
  start.swd = static_cast<uint16_t>(fpu.swd());
  start.twd = static_cast<uint16_t>(fpu.twd());
  start.fop = static_cast<uint16_t>(fpu.fop());
  start.rip = fpu.rip();
  start.rdp = fpu.rdp();
  start.mxcsr = fpu.mxcsr();
  start.mxcsr_mask = fpu.mxcsr_mask();
  ::memcpy(area.data(), &start, sizeof(start));
  CopyWords(fpu.st_space(), area.data() + kSt0Offset, 128);
  CopyWords(fpu.xmm_space(), area.data() + kXmm0Offset, 256);
}

}  // namespace

uint64_t MissingComponents(const proto::ThreadState& thread) {
  if (thread.extra().has_xsave()) return 0;
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  uint64_t enabled = kLegacyComponents;
  if (__get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_OSXSAVE) != 0) {
    asm volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    enabled = uint64_t{d} << 32 | a;
  }
  constexpr uint64_t kTold = 0x2ff;  // by CRIU's message: components 0 to 7, and 9
  const uint64_t used = thread.core().thread_info().fpregs().xsave().xstate_bv();
  return used & ~(enabled & kTold);
}

absl::StatusOr<std::vector<std::byte>> XstateFor(const proto::ThreadState& thread,
                                                 std::span<const std::byte> fresh) {
  if (fresh.size() < kSmallestArea) {
    return absl::UnimplementedError("this processor has no XSAVE");
  }
  const std::string& raw = thread.extra().xsave();
  if (raw.size() == fresh.size()) {
    const auto bytes = std::as_bytes(std::span(raw.data(), raw.size()));
    return std::vector<std::byte>(bytes.begin(), bytes.end());
  }
  std::vector<std::byte> area(fresh.begin(), fresh.end());
  const criu::user_x86_fpregs_entry& fpu = thread.core().thread_info().fpregs();
  CopyLegacy(fpu, area);
  uint64_t components = kLegacyComponents;
  if (fpu.has_xsave()) {
    const criu::user_x86_xsave_entry& xsave = fpu.xsave();
    components = xsave.xstate_bv();
    const auto missing = [&](unsigned component, const auto& words) {
      return (components & (1ull << component)) != 0 && !CopyComponent(component, words, area);
    };
    // Bits beyond 9 have no fields in CRIU's message: such a thread needs the same processor.
    if ((components >> 10) != 0 || missing(2, xsave.ymmh_space()) ||
        missing(3, xsave.bndreg_state()) || missing(4, xsave.bndcsr_state()) ||
        missing(5, xsave.opmask_reg()) || missing(6, xsave.zmm_upper()) ||
        missing(7, xsave.hi16_zmm()) || missing(9, xsave.pkru())) {
      return absl::FailedPreconditionError(
          absl::StrCat("thread ", thread.tid(),
                       " uses processor state that this processor does not have (components ",
                       absl::Hex(components), ")"));
    }
  }
  ::memcpy(area.data() + kHeaderOffset, &components, sizeof(components));
  return area;
}

}  // namespace predump::restore::internal
