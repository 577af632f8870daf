// Since when a thread sleeps, and how a call that a stop broke off is repeated for the rest of it.
//
// Once stopped, a thread no longer tells since when it slept: a note is taken before. Thread rule:
// values and free functions.
#ifndef PREDUMP_KERNEL_SLEEP_NOTE_H_
#define PREDUMP_KERNEL_SLEEP_NOTE_H_

#include <sched.h>
#include <sys/types.h>
#include <sys/user.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "src/kernel/process.h"
#include "src/kernel/process_memory.h"
#include "src/kernel/procfs_maps.h"

namespace predump::kernel {

// The processors' scheduler clocks, as far as one thread can read them: by running there. Puts the
// thread's affinity back at the end.
class SchedulerClocks {
 public:
  SchedulerClocks();
  SchedulerClocks(const SchedulerClocks&) = delete;
  SchedulerClocks& operator=(const SchedulerClocks&) = delete;
  ~SchedulerClocks();

  // What to add to a time of `cpu`'s clock to have our CLOCK_MONOTONIC: never less than that, so
  // that no sleep counts as longer than it was. nullopt: not to be had.
  std::optional<int64_t> OffsetOf(int cpu);

 private:
  std::optional<int64_t> Measure(int cpu);

  cpu_set_t before_;
  bool known_ = false;
  bool moved_ = false;
  absl::flat_hash_map<int, std::optional<int64_t>> offsets_;
};

// A sleep of a thread. The count of the thread's voluntary switches tells sleeps apart: going to
// sleep is one, and so is being stopped.
class SleepNote {
 public:
  // nullopt where the kernel does not tell (/proc/PID/task/TID/sched needs CONFIG_SCHED_DEBUG), or
  // where the thread ran meanwhile.
  static std::optional<SleepNote> Take(const ProcessHandle& process, pid_t tid,
                                       SchedulerClocks& clocks);

  // Our CLOCK_MONOTONIC.
  int64_t since_ns() const { return since_ns_; }
  // Of the thread, now stopped, with that many switches: did the sleep last until the stop?
  bool LastedUntilStop(uint64_t switches_now) const { return switches_now == switches_ + 1; }
  // Of the thread, now stopped: how long it has slept, up to now. nullopt where it woke up between
  // the note and the stop, so that the note speaks of another sleep.
  std::optional<absl::Duration> Slept(const ProcessHandle& process, pid_t tid) const;

  // Of the thread, in the last of several stops that broke this sleep off: counts them as one.
  // False where its switches cannot be read.
  bool CountStopsAsOne(const ProcessHandle& process, pid_t tid);
  // Whether `later`, taken of a sleep that some stop broke off, speaks of this same one.
  bool GoesOnIn(const SleepNote& later) const { return later.switches_ == switches_ + 2; }

 private:
  int64_t since_ns_ = 0;
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
