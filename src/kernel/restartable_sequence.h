// Restartable sequences (rseq(2)) of a stopped thread.
//
// Thread rule: free functions; the caller is the thread's tracer.
#ifndef PREDUMP_KERNEL_RESTARTABLE_SEQUENCE_H_
#define PREDUMP_KERNEL_RESTARTABLE_SEQUENCE_H_

#include <sys/user.h>

#include "absl/status/status.h"
#include "src/kernel/process_memory.h"
#include "src/kernel/ptrace.h"

namespace predump::kernel {

// Where `registers` of the stopped `thread` lie inside a sequence, sets the instruction pointer to
// its abort address. For whoever has the thread run something else first, after which the kernel
// has forgotten the sequence, and with it the abort (DESIGN 12.6).
absl::Status LeaveRestartableSequence(const Tracee& thread, const ProcessMemory& memory,
                                      user_regs_struct* registers);

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_RESTARTABLE_SEQUENCE_H_
