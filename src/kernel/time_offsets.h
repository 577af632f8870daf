// How a process's clocks stand to the host's: /proc/PID/timens_offsets.
#ifndef PREDUMP_KERNEL_TIME_OFFSETS_H_
#define PREDUMP_KERNEL_TIME_OFFSETS_H_

#include <sys/types.h>

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace predump::kernel {

// What the time namespace adds to the host's clocks, in nanoseconds. Zero outside any.
struct TimeOffsets {
  int64_t monotonic_ns = 0;
  int64_t boottime_ns = 0;
};

// "monotonic  SECONDS  NANOSECONDS" and the same for boottime. DataLoss for anything else.
absl::StatusOr<TimeOffsets> ParseTimeOffsets(absl::string_view text);

// Of the time namespace that children of `pid` are made in, which is its own unless it called
// unshare(CLONE_NEWTIME) (time_namespaces(7), Linux 5.6). A kernel without time namespaces: zeros.
absl::StatusOr<TimeOffsets> ReadTimeOffsets(pid_t pid);

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_TIME_OFFSETS_H_
