// A system call that the freeze broke off: where the thread goes on at the target, and how much of
// the call's relative timeout is left (DESIGN 12, fact 8).
#ifndef PREDUMP_CHECKPOINT_INTERRUPTED_CALL_H_
#define PREDUMP_CHECKPOINT_INTERRUPTED_CALL_H_

#include <sys/user.h>

#include <cstdint>
#include <optional>

#include "absl/time/time.h"
#include "proto/state.pb.h"
#include "src/checkpoint/capture_instant.h"
#include "src/kernel/bpf/records.h"
#include "src/kernel/process.h"

namespace predump::checkpoint {

// What is known about the call besides the registers.
struct CallContext {
  const kernel::ThreadRecord* record = nullptr;
  const CaptureInstant* instant = nullptr;
  // Host's CLOCK_MONOTONIC when the thread fell asleep; nullopt where nobody looked in time.
  std::optional<uint64_t> asleep_since_ns;
  bool unblocked_signal_pending = false;
};

struct ResumePoint {
  user_regs_struct registers;                  // for a thread that is rebuilt elsewhere
  std::optional<proto::InterruptedCall> call;  // absent: it was in no call, or the call was over
};

// `stopped` are the registers of a thread in PTRACE_EVENT_STOP. Reads at most one timespec of the
// process's memory; where that fails the remaining time is left out.
ResumePoint ResumeElsewhere(const kernel::ProcessHandle& process, const user_regs_struct& stopped,
                            const CallContext& context);

// What was left at the instant of the call of a thread with these registers; nullopt: no relative
// timeout, or unknown.
std::optional<absl::Duration> RemainingTime(const kernel::ProcessHandle& process,
                                            const user_regs_struct& stopped,
                                            const CallContext& context);

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_INTERRUPTED_CALL_H_
