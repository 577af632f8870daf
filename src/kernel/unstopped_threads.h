// Threads in an uninterruptible wait (a vfork parent, a read from a dead server), which can be
// attached to but not stopped.
//
// Whoever attaches looks for such a wait first, but a thread may enter one between the look and the
// attachment. It then stops as soon as it comes back, and only a stopped thread can be detached
// from: so the attachment is kept until then, and ended in the moment the thread stops. The kernel
// ends what is left when the attaching thread exits, whatever state the other one is in.
// Thread rule: the thread that attached.
#ifndef PREDUMP_KERNEL_UNSTOPPED_THREADS_H_
#define PREDUMP_KERNEL_UNSTOPPED_THREADS_H_

#include <sys/types.h>

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "src/kernel/process.h"
#include "src/kernel/ptrace.h"

namespace predump::kernel {

// Whether a thread is in such a wait now (state D).
bool WaitsUninterruptibly(const ProcessHandle& process, pid_t tid);

// DeadlineExceeded, naming the thread and what it waits for.
absl::Status DidNotStop(const ProcessHandle& process, pid_t tid, absl::Duration timeout);

class UnstoppedThreads {
 public:
  UnstoppedThreads() = default;
  UnstoppedThreads(const UnstoppedThreads&) = delete;
  UnstoppedThreads& operator=(const UnstoppedThreads&) = delete;
  // What has not stopped by now is left to the kernel.
  ~UnstoppedThreads();

  // `thread` was interrupted and has not stopped.
  void Add(Tracee thread);
  bool empty() const { return threads_.empty(); }
  bool Contains(pid_t tid) const;
  // The first that has not stopped yet.
  pid_t first() const { return threads_.front().tid(); }

  // Lets go of those that have stopped or exited, waiting for `patience` at most for one of them to
  // do so. An exit is no error.
  absl::Status LetGoOfStopped(absl::Duration patience = absl::ZeroDuration());
  // The same until none is left. DeadlineExceeded: one has not stopped by `deadline_ns`
  // (CLOCK_MONOTONIC).
  absl::Status LetGoOfAll(int64_t deadline_ns);

  // How long those let go of stood still, at most: each counts from the last look at which it had
  // not stopped.
  absl::Duration stopped() const { return stopped_; }

 private:
  std::vector<Tracee> threads_;
  int64_t last_look_ns_ = 0;
  absl::Duration stopped_;
};

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_UNSTOPPED_THREADS_H_
