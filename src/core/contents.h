// Which pages of each mapping a core file holds: a look at the page tables, and at the files behind
// shared memory.
#ifndef PREDUMP_CORE_CONTENTS_H_
#define PREDUMP_CORE_CONTENTS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "src/core/layout.h"
#include "src/kernel/process.h"
#include "src/pagemap/page_scanner.h"

namespace predump::core {

struct Contents {
  std::vector<Taken> taken;           // one for each mapping, in order
  std::vector<std::string> warnings;  // what could not be found out
};

// Looks at `mappings` (ascending) as they are now; unmapped parts count as empty. Shared memory
// that other processes alone have touched is found through /proc/PID/map_files, which needs
// CAP_CHECKPOINT_RESTORE; without it there is a warning instead.
// Errors: TargetExited; else from errno.
absl::StatusOr<Contents> FindContents(const kernel::ProcessHandle& process,
                                      const std::vector<Mapping>& mappings, uint64_t filter,
                                      pagemap::WalkPace pace);

}  // namespace predump::core

#endif  // PREDUMP_CORE_CONTENTS_H_
