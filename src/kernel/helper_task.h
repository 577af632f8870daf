// A task that shares the memory of the target and nothing else, and queues that memory into a pipe.
//
// Made by InjectSetup. It is a child of the target's reaper, holds no descriptor of the target, has
// all signals blocked, is traced by us and dies with us. Its code and the tables of its calls lie
// in the zero padding of the target's vDSO; no mapping is added. I1: between calls it is stopped at
// the entry of exit_group(2): without a tracer it only exits. I2: it holds the target's memory
// alive; Finish() it when the target has exited (its pidfd tells). Thread rule: one thread, that of
// InjectSetup (ptrace's rule).
#ifndef PREDUMP_KERNEL_HELPER_TASK_H_
#define PREDUMP_KERNEL_HELPER_TASK_H_

#include <sys/types.h>

#include <optional>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "src/base/unique_fd.h"
#include "src/base/units.h"
#include "src/kernel/process_memory.h"
#include "src/kernel/ptrace.h"

namespace predump::kernel {

class HelperTask {
 public:
  HelperTask(HelperTask&&) noexcept = default;
  HelperTask& operator=(HelperTask&& other) noexcept;
  // As Finish().
  ~HelperTask();

  // Takes over the task that the setup program, at the start of `padding`, has made: lets it leave
  // the descriptors of the target and make its pipe. On an error it is gone. Errors: TargetExited
  // it was killed; else from its system calls.
  static absl::StatusOr<HelperTask> Start(Tracee tracee, base::AddressRange padding,
                                          base::ByteCount program, base::ByteCount pipe_capacity);

  pid_t tid() const { return tracee_.tid(); }
  int pidfd() const { return pidfd_.get(); }
  // The read end of its pipe: ours. What Vmsplice queued is read or spliced from here.
  int pipe() const { return pipe_.get(); }
  base::ByteCount pipe_capacity() const { return capacity_; }
  // How many ranges one remote call takes; longer spans are cut into several.
  size_t max_ranges_per_call() const { return max_ranges_; }

  // Queues pages of the target into the pipe, without copying and without waiting.
  // Shape: page-aligned ranges, in order. Units: the result is bytes from the start of `ranges`;
  // fewer than asked for where the pipe is full or the next page is not readable, 0 where that is
  // so at once. Tell the two apart by whether the pipe is empty. Errors: Unavailable somebody
  // killed the helper, whatever of `ranges` the pipe then holds is not told of; else from
  // vmsplice(2). EFAULT is not an error: 0.
  absl::StatusOr<base::ByteCount> Vmsplice(std::span<const base::AddressRange> ranges);

  // Kills and reaps the helper, zeroes the padding; the target is not touched otherwise.
  absl::Status Finish();

 private:
  HelperTask(Tracee tracee, base::AddressRange padding) noexcept
      : tracee_(std::move(tracee)), padding_(padding) {}

  // Up to the entry of exit_group: the descriptors pipe2 gave, {read, write}.
  absl::StatusOr<uint64_t> RunToExit();
  // Until it is at the entry of exit_group.
  absl::Status WaitForEntry(absl::Duration timeout);
  absl::Status WipePadding();
  // One system call in the helper: its result or -errno.
  absl::StatusOr<int64_t> Call(uint64_t number, std::span<const uint64_t> arguments);
  absl::StatusOr<int64_t> VmspliceTable(std::span<const base::AddressRange> ranges);

  Tracee tracee_;
  std::optional<ProcessMemory> memory_;  // until the padding is zero again
  base::UniqueFd pidfd_;
  base::UniqueFd pipe_;
  base::ByteCount capacity_;
  int remote_pipe_ = -1;
  base::AddressRange padding_;  // what Finish zeroes
  base::RemoteAddress table_;   // iovecs, in the padding
  size_t max_ranges_ = 0;
  bool at_entry_ = false;  // the entry stop of exit_group was waited for
};

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_HELPER_TASK_H_
