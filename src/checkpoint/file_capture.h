// All open files of a process.
#ifndef PREDUMP_CHECKPOINT_FILE_CAPTURE_H_
#define PREDUMP_CHECKPOINT_FILE_CAPTURE_H_

#include "absl/status/status.h"
#include "src/checkpoint/file_context.h"

namespace predump::checkpoint {

// Reads the descriptors into context.descriptors and everything about them into context.state.
absl::Status FillFiles(FileContext& context);

// Refuses pipes and connected unix sockets of the process that another process has open too: it
// would be left with an end that leads nowhere. Looks at every process, so not while frozen.
absl::Status RefuseSharedEnds(FileContext& context);

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_FILE_CAPTURE_H_
