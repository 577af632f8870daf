// Where a core file is written to.
//
// Bytes come in ascending order of their offsets; what is left out reads as zeros. Nothing is to be
// seen under the name of a file before Finish(), and nothing is left of it without.
// Thread rule: one thread at a time.
#ifndef PREDUMP_CORE_OUTPUT_H_
#define PREDUMP_CORE_OUTPUT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/base/units.h"
#include "src/kernel/splice.h"
#include "src/pagemap/page_source.h"

namespace predump::core {

// So many bytes to be put at an offset.
struct Placement {
  uint64_t offset = 0;
  base::ByteCount bytes;
};

class Output {
 public:
  virtual ~Output() = default;

  virtual absl::Status Write(uint64_t offset, std::span<const std::byte> bytes) = 0;

  // Takes all that the last Fetch of `source` got, at most max_bytes(), and puts it where
  // `placements` (in the order of the bytes) say.
  virtual absl::Status Take(pagemap::PageSource& source, std::span<const Placement> placements) = 0;
  virtual base::ByteCount max_bytes() const = 0;

  // All is written: makes it `size` bytes, and lasting. Only now is an existing file replaced.
  virtual absl::Status Finish(uint64_t size) = 0;
};

// `path`: a file, which is written whole or not at all (mode 0600; its directory must be writable);
// an existing pipe or device, or "-" for standard output, which take bytes one after the other.
// A readable `cancel_fd` ends a wait for a slow reader (Cancelled).
// Errors, before anything is touched: InvalidArgument a directory, a terminal, a symbolic link to a
// file (the link would be replaced, or somebody else's file), an output in append mode;
// FailedPrecondition nobody reads from the pipe; else from errno, with the path.
absl::StatusOr<std::unique_ptr<Output>> OpenOutput(const std::string& path, int cancel_fd);

// Whether somebody asked for the end: `cancel_fd` (-1: nobody can) is readable.
bool IsCancelled(int cancel_fd);

}  // namespace predump::core

#endif  // PREDUMP_CORE_OUTPUT_H_
