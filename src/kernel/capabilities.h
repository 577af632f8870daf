// What this kernel can do, found by trying, never by version.
//
// Thread rule: free functions; probes fork short-lived children and leave nothing behind.
#ifndef PREDUMP_KERNEL_CAPABILITIES_H_
#define PREDUMP_KERNEL_CAPABILITIES_H_

#include <sys/syscall.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "src/kernel/splice.h"

namespace predump::kernel {

enum class Capability {
  kUffdWpAsync,
  kUffdUnprivileged,
  kPagemapScan,
  kSoftDirty,
  kPidfdGetfd,
  kProcessVmReadv,
  kVmspliceSharesPages,
  kProcessVmsplice,
  kCloseRangeUnshare,
  kClone3SetTid,
  kTimeNamespace,
  kRseqConfiguration,
  kKcmp,
  kBtf,
  kMemfd,
};

struct CapabilityResult {
  Capability capability;
  std::string name;     // "uffd-wp-async"
  std::string purpose;  // what it is for
  std::string since;    // the first kernel that has it, "5.6", "patched"
  bool available = false;
  std::string reason;  // how it was found, or why it is not there
};

struct ProbeOptions {
  long process_vmsplice_number = kProcessVmspliceNumber;
  // The number of vmsplice(2); a test puts in a call that copies instead.
  long vmsplice_number = SYS_vmsplice;
};

// One probe. Errors only where the probe itself could not be run (fork failed, ...).
absl::StatusOr<CapabilityResult> Probe(Capability capability, const ProbeOptions& options = {});
// All, in the order of the enumeration.
absl::StatusOr<std::vector<CapabilityResult>> ProbeAll(const ProbeOptions& options = {});

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_CAPABILITIES_H_
