#include "src/checkpoint/xstate.h"

#include <sys/user.h>

#include <array>
#include <cstdint>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "src/checkpoint/cpu.h"
#include "src/images/image_constants.h"

namespace predump::checkpoint {
namespace {

constexpr size_t kLegacyBytes = 512;
constexpr size_t kHeaderBytes = 64;
// Components, Intel SDM volume 1, 13.1.
enum Component {
  kAvx = 2,
  kBndreg = 3,
  kBndcsr = 4,
  kOpmask = 5,
  kZmmUpper = 6,
  kHi16Zmm = 7,
  kPkru = 9,
  kComponents = 10
};

// CPUID costs microseconds on a virtual machine (each one leaves it), hence once per program.
const std::array<XsaveComponent, kComponents>& Layout() {
  static const std::array<XsaveComponent, kComponents> layout = [] {
    std::array<XsaveComponent, kComponents> all;
    for (int i = 0; i < kComponents; ++i) all[static_cast<size_t>(i)] = XsaveComponentLayout(i);
    return all;
  }();
  return layout;
}

template <typename Word, typename Field>
void CopyComponent(std::span<const std::byte> area, uint64_t present, Component component,
                   size_t words, Field* out) {
  const XsaveComponent& where = Layout()[component];
  const size_t bytes = words * sizeof(Word);
  if ((present >> component & 1) == 0 || where.bytes < bytes ||
      where.offset + bytes > area.size()) {
    return;
  }
  out->Resize(static_cast<int>(words), 0);
  std::memcpy(out->mutable_data(), area.data() + where.offset, bytes);
}

}  // namespace

absl::Status DecodeXstate(std::span<const std::byte> area, criu::user_x86_fpregs_entry& fpregs) {
  if (area.size() < kLegacyBytes + kHeaderBytes) {
    return absl::DataLossError(absl::StrCat("extended state of ", area.size(), " bytes"));
  }
  static_assert(sizeof(struct user_fpregs_struct) == kLegacyBytes);
  struct user_fpregs_struct legacy;
  std::memcpy(&legacy, area.data(), sizeof legacy);
  fpregs.set_cwd(legacy.cwd);
  fpregs.set_swd(legacy.swd);
  fpregs.set_twd(legacy.ftw);
  fpregs.set_fop(legacy.fop);
  fpregs.set_rip(legacy.rip);
  fpregs.set_rdp(legacy.rdp);
  fpregs.set_mxcsr(legacy.mxcsr);
  fpregs.set_mxcsr_mask(legacy.mxcr_mask);
  fpregs.mutable_st_space()->Assign(legacy.st_space, legacy.st_space + images::kFpuStackWords);
  fpregs.mutable_xmm_space()->Assign(legacy.xmm_space, legacy.xmm_space + images::kXmmWords);

  uint64_t present;
  std::memcpy(&present, area.data() + kLegacyBytes, sizeof present);
  criu::user_x86_xsave_entry& xsave = *fpregs.mutable_xsave();
  xsave.set_xstate_bv(present);
  CopyComponent<uint32_t>(area, present, kAvx, 64, xsave.mutable_ymmh_space());
  CopyComponent<uint64_t>(area, present, kBndreg, 8, xsave.mutable_bndreg_state());
  CopyComponent<uint64_t>(area, present, kBndcsr, 8, xsave.mutable_bndcsr_state());
  CopyComponent<uint64_t>(area, present, kOpmask, 8, xsave.mutable_opmask_reg());
  CopyComponent<uint64_t>(area, present, kZmmUpper, 64, xsave.mutable_zmm_upper());
  CopyComponent<uint64_t>(area, present, kHi16Zmm, 128, xsave.mutable_hi16_zmm());
  CopyComponent<uint32_t>(area, present, kPkru, 2, xsave.mutable_pkru());
  return absl::OkStatus();
}

}  // namespace predump::checkpoint
