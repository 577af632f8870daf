// The self-finishing program of a readout, as bytes for the end of the target's vDSO padding.
//
//   work:   map two pages
//   call:   one system call: the tracer aims it anew as often as it likes; alone it is getpid
//           unmap the pages
//
// What it has in common with others: injected_program.h. Thread rule: values and free functions.
#ifndef PREDUMP_KERNEL_READOUT_PROGRAM_X86_64_H_
#define PREDUMP_KERNEL_READOUT_PROGRAM_X86_64_H_

#include <sys/user.h>

#include <cstddef>
#include <cstdint>

#include "src/base/units.h"
#include "src/kernel/injected_program.h"

namespace predump::kernel {

inline constexpr size_t kReadoutPages = 2;

struct ReadoutProgramInput {
  user_regs_struct resume;      // what the program loads at its end (RestartRegisters)
  uint64_t signal_mask = 0;     // what it puts back
  base::RemoteAddress scratch;  // where kReadoutPages pages may be mapped for a moment
};

struct ReadoutProgram {
  InjectedProgram program;
  size_t call = 0;  // offset of the syscall instruction to aim
};

ReadoutProgram BuildReadoutProgram(const ReadoutProgramInput& input);

// Bytes of the program, always the same.
size_t ReadoutProgramSize();

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_READOUT_PROGRAM_X86_64_H_
