// Chooses a page source for a core file and sets it up.
#ifndef PREDUMP_CORE_SOURCE_H_
#define PREDUMP_CORE_SOURCE_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "src/kernel/process.h"
#include "src/pagemap/page_source.h"

namespace predump::core {

struct ChosenSource {
  std::unique_ptr<pagemap::PageSource> source;
  std::string reason;      // one clause: why this one
  absl::Duration stopped;  // how long one thread was stopped to set it up
};

// `requested` as for --source. With "auto", what cannot be set up in this process (it is stopped,
// every thread is filtered by seccomp, ...) makes way for a source that needs nothing in it.
// `process` outlives the source; `timeout` is how long to wait for a thread that can be stopped.
// Errors: TargetExited; InvalidArgument an unknown name; else why the one asked for cannot be had.
absl::StatusOr<ChosenSource> ChooseAndSetUp(const kernel::ProcessHandle& process,
                                            const std::string& requested, absl::Duration timeout);

}  // namespace predump::core

#endif  // PREDUMP_CORE_SOURCE_H_
