#include "src/restore/trampoline.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"

namespace predump::restore::internal {

absl::StatusOr<Trampoline> Trampoline::Create(base::UniqueFd* fd) {
  constexpr unsigned kMfdExec = 0x10;  // Linux 6.3; asked for by vm.memfd_noexec
  int raw = ::memfd_create("predump-trampoline", MFD_CLOEXEC | kMfdExec);
  if (raw < 0 && errno == EINVAL) raw = ::memfd_create("predump-trampoline", MFD_CLOEXEC);
  if (raw < 0) return base::ErrnoError(errno, "memfd_create for the trampoline");
  base::UniqueFd memory(raw);
  if (::ftruncate(memory.get(), static_cast<off_t>(kTrampolineBytes)) != 0) {
    return base::ErrnoError(errno, "size the trampoline");
  }
  Trampoline trampoline;
  PREDUMP_ASSIGN_OR_RETURN(
      trampoline.region_,
      base::MappedRegion::Shared(memory.get(), 0, kTrampolineBytes, PROT_READ | PROT_WRITE));
  *fd = std::move(memory);
  return trampoline;
}

absl::StatusOr<Trampoline::Part> Trampoline::Slice(uint64_t bytes) {
  const uint64_t size = (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  if (bytes > kTrampolineBytes || size > kTrampolineBytes - used_) {
    return absl::ResourceExhaustedError(absl::StrCat("the process's state needs more than ",
                                                     kTrampolineBytes >> 20,
                                                     " MiB of calls and data to be built"));
  }
  const Part part{remote_ + base::ByteCount(used_), region_.bytes().subspan(used_, size)};
  used_ += size;
  return part;
}

}  // namespace predump::restore::internal
