// Writes an ELF core file of a process that goes on running.
//
// Registers and notes are read under a freeze of milliseconds, together with the part of each stack
// that is in use; the rest of the memory is copied while the process runs on, each page at a moment
// of its own. With `consistent` the freeze lasts until the last page is copied.
// I1: the process goes on as it was, whatever happens, our death included (freezer.h, I3).
// I2: nothing is left of a file that was not finished (output.h).
// Thread rule: one thread, which becomes the tracer.
#ifndef PREDUMP_CORE_CORE_DUMP_H_
#define PREDUMP_CORE_CORE_DUMP_H_

#include <sys/types.h>

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "src/core/core_report.h"

namespace predump::core {

struct CoreOptions {
  pid_t pid = 0;
  std::string output;  // as OpenOutput takes it
  bool consistent = false;
  std::string source = "auto";
  std::optional<pid_t> first_thread;  // the one that debuggers show first; unset: the leader
  absl::Duration freeze_timeout = absl::Seconds(2);
  int cancel_fd = -1;  // readable: give up
};

// `report` is filled as far as it came, also on errors: Cancelled; TargetExited; FailedPrecondition
// the process executed another program, or cannot be stopped; else of output and source.
absl::Status DumpCore(const CoreOptions& options, CoreReport& report);

}  // namespace predump::core

#endif  // PREDUMP_CORE_CORE_DUMP_H_
