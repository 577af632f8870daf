// What only the kernel knows about a process and its threads, read without touching them.
//
// A BPF iterator (iter/task, Linux 6.1) walks the threads inside the kernel. Loading and attaching
// cost milliseconds and happen in Create(), before a freeze; Read() costs microseconds and may be
// called any number of times, on running and on frozen processes. A frozen process gives a
// consistent picture; a running one gives each thread as it was at some instant.
//
// Thread rule: an object belongs to one thread at a time.
#ifndef PREDUMP_KERNEL_BPF_TASK_CAPTURE_H_
#define PREDUMP_KERNEL_BPF_TASK_CAPTURE_H_

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "src/kernel/bpf/records.h"

namespace predump::kernel {

// Threads come in the kernel's order, the leader first.
struct TaskSnapshot {
  ProcessRecord process = {};
  std::vector<ThreadRecord> threads;
  std::vector<PosixTimerRecord> posix_timers;
};

// What restart_syscall(2) would do for a call that returned -516.
enum class RestartKind {
  kNone,
  kNanosleep,
  kCpuNanosleep,
  kAlarmNanosleep,
  kPoll,
  kFutex,
  kUnknown
};

// A deadline on one clock of the host (initial time namespace).
struct RestartDeadline {
  clockid_t clock = 0;
  uint64_t expires_ns = 0;
};

RestartKind RestartKindOf(const RestartBlock& block);

// The absolute deadline of the interrupted call; nothing where it has none (poll and futex without
// a timeout, kinds without one). Only meaningful where the call returned -516. Sleeps come with the
// thread's timer slack added, which restart_syscall(2) keeps and a new call adds again.
std::optional<RestartDeadline> RestartDeadlineOf(const RestartBlock& block);

// Nanoseconds since the thread last ran; for a thread asleep in a call, since it went to sleep.
// Stopping a thread makes it run: read this before a freeze. Nothing where the kernel hides it.
std::optional<uint64_t> OffCpuNanoseconds(const ThreadRecord& thread);

class TaskCapture {
 public:
  // `tgid` is a process id in the caller's pid namespace. The process stays identified by a pidfd.
  // Errors: TargetExited; PermissionDenied without CAP_BPF and CAP_PERFMON; Unimplemented where
  // the kernel lacks BTF or iterators, or "built without BPF".
  static absl::StatusOr<TaskCapture> Create(pid_t tgid);

  TaskCapture(TaskCapture&&) noexcept;
  TaskCapture& operator=(TaskCapture&&) noexcept;
  ~TaskCapture();

  // Errors: TargetExited where the process is gone; DataLoss for a stream that does not parse.
  absl::StatusOr<TaskSnapshot> Read();

 private:
  struct Program;
  explicit TaskCapture(std::unique_ptr<Program> program);
  std::unique_ptr<Program> program_;
};

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_BPF_TASK_CAPTURE_H_
