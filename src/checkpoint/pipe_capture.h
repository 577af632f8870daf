// Pipes with both ends inside the process, and what is in them.
#ifndef PREDUMP_CHECKPOINT_PIPE_CAPTURE_H_
#define PREDUMP_CHECKPOINT_PIPE_CAPTURE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/checkpoint/file_context.h"

namespace predump::checkpoint {

// Adds one end of a pipe and returns its id.
absl::StatusOr<uint32_t> AddPipeEnd(FileContext& context, const Descriptor& descriptor);

// After all ends are there: refuses pipes whose other end is not in the process, and, frozen,
// copies the contents of the others with tee(2), which takes nothing out.
absl::Status FillPipes(FileContext& context);

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_PIPE_CAPTURE_H_
