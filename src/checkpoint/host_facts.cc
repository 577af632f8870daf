#include "src/checkpoint/host_facts.h"

#include <openssl/evp.h>
#include <sys/auxv.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/base/units.h"
#include "src/checkpoint/blocker_list.h"
#include "src/checkpoint/cpu.h"
#include "src/kernel/process.h"
#include "src/kernel/process_identity.h"
#include "src/kernel/procfs.h"
#include "src/kernel/time_offsets.h"

namespace predump::checkpoint {
namespace {

absl::StatusOr<std::string> Sha256(const void* data, size_t size) {
  std::string digest(EVP_MAX_MD_SIZE, '\0');
  unsigned length = 0;
  if (EVP_Digest(data, size, reinterpret_cast<unsigned char*>(digest.data()), &length, EVP_sha256(),
                 nullptr) != 1) {
    return absl::InternalError("SHA-256 is not available in libcrypto");
  }
  digest.resize(length);
  return digest;
}

absl::Status FillVdso(proto::HostFacts& facts) {
  PREDUMP_ASSIGN_OR_RETURN(const auto self, kernel::ProcessHandle::Open(::getpid()));
  PREDUMP_ASSIGN_OR_RETURN(const auto maps, kernel::ReadMaps(self));
  uint64_t vvar_bytes = 0;
  for (const kernel::MapsEntry& entry : maps) {
    if (entry.path == "[vdso]") {
      const auto* image = reinterpret_cast<const void*>(entry.range.start().value());
      PREDUMP_ASSIGN_OR_RETURN(std::string digest, Sha256(image, entry.range.size().value()));
      facts.set_vdso_sha256(std::move(digest));
      facts.set_vdso_size_bytes(entry.range.size().value());
    } else if (entry.path.starts_with("[vvar")) {
      vvar_bytes += entry.range.size().value();
    }
  }
  facts.set_vvar_size_bytes(vvar_bytes);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<proto::HostFacts> ReadHostFacts() {
  proto::HostFacts facts;
  struct utsname names;
  if (::uname(&names) != 0) return base::ErrnoError(errno, "uname");
  facts.set_kernel_release(names.release);
  PREDUMP_ASSIGN_OR_RETURN(*facts.mutable_boot_id(), kernel::ReadBootId());
  facts.set_page_size_bytes(base::PageSize());

  const CpuFacts cpu = ReadCpuFacts();
  facts.set_cpu_vendor(cpu.vendor);
  for (const uint32_t word : cpu.features) facts.add_cpuid_features(word);
  facts.set_xstate_features(cpu.xstate_features);
  facts.set_xsave_size_bytes(cpu.xsave_bytes);
  PREDUMP_RETURN_IF_ERROR(FillVdso(facts));

  PREDUMP_ASSIGN_OR_RETURN(const auto offsets, kernel::ReadTimeOffsets(::getpid()));
  facts.set_monotonic_ns(base::ClockNanoseconds(CLOCK_MONOTONIC) - offsets.monotonic_ns);
  facts.set_boottime_ns(base::ClockNanoseconds(CLOCK_BOOTTIME) - offsets.boottime_ns);
  return facts;
}

std::vector<proto::Blocker> CompareHosts(const proto::HostFacts& source,
                                         const proto::HostFacts& target, const HostNames& names) {
  BlockerList blockers;
  if (source.page_size_bytes() != target.page_size_bytes()) {
    blockers.Add("host page size", absl::StrCat(source.page_size_bytes(), " bytes ", names.source,
                                                ", ", target.page_size_bytes(), " ", names.target));
  }
  if (source.cpu_vendor() != target.cpu_vendor()) {
    blockers.Add("host processor",
                 absl::StrCat(source.cpu_vendor(), " ", names.source, ", ", target.cpu_vendor(),
                              " ", names.target, ": their extended state is laid out differently"));
  }
  const std::vector<std::string> missing = MissingCpuFeatures(
      {source.cpuid_features().data(), static_cast<size_t>(source.cpuid_features_size())},
      {target.cpuid_features().data(), static_cast<size_t>(target.cpuid_features_size())});
  if (!missing.empty()) {
    blockers.Add("host processor features",
                 absl::StrCat("missing ", names.target, ": ", absl::StrJoin(missing, " ")),
                 "choose a target with the same or a newer processor");
  }
  const uint64_t lost_states = source.xstate_features() & ~target.xstate_features();
  if (lost_states != 0) {
    blockers.Add("host extended state", absl::StrFormat("components %#x of XCR0 are not kept %s",
                                                        lost_states, names.target));
  }
  if (source.vdso_sha256() != target.vdso_sha256() ||
      source.vdso_size_bytes() != target.vdso_size_bytes() ||
      source.vvar_size_bytes() != target.vvar_size_bytes()) {
    blockers.Add(
        "host vDSO",
        absl::StrCat("the kernels give processes different ones (", source.kernel_release(), " ",
                     names.source, ", ", target.kernel_release(), " ", names.target, ")"),
        "boot the same kernel at both hosts");
  }
  return std::move(blockers).Take();
}

}  // namespace predump::checkpoint
