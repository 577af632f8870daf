// The build-id note of an ELF file: what makes two builds of one program different files.
#ifndef PREDUMP_CHECKPOINT_BUILD_ID_H_
#define PREDUMP_CHECKPOINT_BUILD_ID_H_

#include <string>

#include "absl/status/statusor.h"

namespace predump::checkpoint {

// The NT_GNU_BUILD_ID bytes of the 64-bit or 32-bit ELF file behind `fd` (at most 64 bytes), empty
// where it has none or is no ELF file. Malformed headers count as "none"; reads are bounded.
// Errors: pread(2).
absl::StatusOr<std::string> ReadBuildId(int fd);

// ELF class of the file behind `fd`: 64, 32, or 0 for no ELF file.
absl::StatusOr<int> ReadElfClass(int fd);

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_BUILD_ID_H_
