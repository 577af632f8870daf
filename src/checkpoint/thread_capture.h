// One thread: what can be told while it runs, and what only a stop tells.
#ifndef PREDUMP_CHECKPOINT_THREAD_CAPTURE_H_
#define PREDUMP_CHECKPOINT_THREAD_CAPTURE_H_

#include <sys/types.h>

#include <span>

#include "absl/status/status.h"
#include "proto/state.pb.h"
#include "src/checkpoint/blocker_list.h"
#include "src/checkpoint/interrupted_call.h"
#include "src/kernel/bpf/task_capture.h"
#include "src/kernel/process.h"
#include "src/kernel/ptrace.h"

namespace predump::checkpoint {

// Name, scheduling, affinity, masks, addresses the kernel keeps for the thread. `creds` is copied.
absl::Status FillThreadAttributes(const kernel::ThreadRecord& record, pid_t tid,
                                  const criu::creds_entry& creds, proto::ThreadState& state);

// Registers, extended state, rseq and private pending signals of a stopped thread. Attributes must
// have been filled. What cannot move (a 32-bit thread, segment descriptors) goes to `blockers`.
absl::Status FillThreadExecution(const kernel::ProcessHandle& process, const kernel::Tracee& tracee,
                                 const CallContext& context, proto::ThreadState& state,
                                 BlockerList& blockers);

// A thread whose stop fell into a restartable sequence goes on at the sequence's abort address, in
// its core registers (DESIGN 12, fact 6). One read of memory for all threads.
absl::Status AbortRestartableSequences(const kernel::ProcessHandle& process,
                                       proto::ProcessState& state);

// Whether a pending signal that is neither blocked nor ignored waits for the thread.
bool HasUnblockedSignal(const kernel::ProcessRecord& process, const kernel::ThreadRecord& thread);

// The 128 bytes of each.
void FillSignals(std::span<const siginfo_t> signals, criu::signal_queue_entry& queue);

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_THREAD_CAPTURE_H_
