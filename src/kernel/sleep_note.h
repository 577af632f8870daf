// How much of a relative timeout has passed when a stop breaks a call off, and how the call is
// repeated for the rest of it.
//
// Once stopped, a thread no longer tells since when it slept: a note is taken right before.
// Thread rule: values and free functions; Take() on the CPU the thread last ran on (CpuFollower).
#ifndef PREDUMP_KERNEL_SLEEP_NOTE_H_
#define PREDUMP_KERNEL_SLEEP_NOTE_H_

#include <sys/types.h>
#include <sys/user.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/time/time.h"
#include "src/kernel/process.h"
#include "src/kernel/process_memory.h"
#include "src/kernel/procfs_maps.h"

namespace predump::kernel {

class SleepNote {
 public:
  // nullopt where the kernel does not tell (/proc/PID/task/TID/sched needs CONFIG_SCHED_DEBUG).
  static std::optional<SleepNote> Take(const ProcessHandle& process, pid_t tid);

  // Of the thread, now stopped: since when it was asleep, up to now. nullopt where it woke up
  // between the note and the stop, so that the note speaks of another sleep.
  std::optional<absl::Duration> Slept(const ProcessHandle& process, pid_t tid) const;

 private:
  int64_t since_ns_ = 0;  // CLOCK_MONOTONIC
  uint64_t switches_ = 0;
};

// Changes the registers of a thread whose call gave EINTR on a stop and had lasted for `slept`: the
// repeated call gets what is left of its relative timeout. A timeout in memory belongs to the
// application, so the rest goes below the red zone of the thread's stack, where nobody relies on
// what is there. Does nothing where there is no timeout or no room. Not known here, so begun anew:
// timeouts of sockets (SO_RCVTIMEO).
void ShortenRepeatedCall(const ProcessMemory& memory, const std::vector<MapsEntry>& maps,
                         absl::Duration slept, user_regs_struct& registers);

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_SLEEP_NOTE_H_
