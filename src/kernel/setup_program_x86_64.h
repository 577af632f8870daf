// The self-finishing program of the setup stop, as bytes for the target's vDSO padding.
//
//   work:   userfaultfd (again as user-mode-only where refused), close it;
//           am I a subreaper? then no helper; clone a child, reap it
//   child:  clone the helper, exit
//   helper: leave the descriptor table, make a pipe, exit_group for ever
//
// The tracer takes what it wants at stops in between; without it the program closes, reaps and
// exits by itself. What it has in common with others: injected_program.h.
// Thread rule: values and free functions.
#ifndef PREDUMP_KERNEL_SETUP_PROGRAM_X86_64_H_
#define PREDUMP_KERNEL_SETUP_PROGRAM_X86_64_H_

#include <sys/user.h>

#include <cstddef>
#include <cstdint>

#include "src/base/units.h"
#include "src/kernel/injected_program.h"

namespace predump::kernel {

struct SetupProgramInput {
  user_regs_struct resume;        // what the program loads at its end (RestartRegisters)
  uint64_t signal_mask = 0;       // what it puts back
  base::RemoteAddress free_page;  // where a page may be mapped for a moment
  bool userfaultfd = false;
  bool helper = false;
  bool ask_subreaper = false;
};

InjectedProgram BuildSetupProgram(const SetupProgramInput& input);

// Bytes of the program, always the same.
size_t SetupProgramSize();

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_SETUP_PROGRAM_X86_64_H_
