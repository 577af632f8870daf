// The registers that core-*.img gets for a thread that the freeze found inside a system call.
//
// CRIU loads them as they are; the kernel does nothing about a broken-off call by itself then.
// Thread rule: pure.
#ifndef PREDUMP_IMAGES_IMAGE_REGISTERS_H_
#define PREDUMP_IMAGES_IMAGE_REGISTERS_H_

#include "proto/state.pb.h"

namespace predump::images {

// The captured registers repeat the call, which is right unless a handler is about to run: it would
// run before the call is made again, which then waits for what has already come. So that call ends
// with EINTR where the kernel would have ended it, by the signals in `thread` and `task`. A signal
// to the process that several threads could take counts for each of them: a call that ends too
// early can be made again by the program, one that sleeps for ever cannot.
criu::user_x86_regs_entry ImageRegisters(const proto::ThreadState& thread,
                                         const criu::task_core_entry& task);

}  // namespace predump::images

#endif  // PREDUMP_IMAGES_IMAGE_REGISTERS_H_
