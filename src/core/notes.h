// The notes of a core file (PT_NOTE), in the order in which the kernel writes them.
#ifndef PREDUMP_CORE_NOTES_H_
#define PREDUMP_CORE_NOTES_H_

#include <string>

#include "src/core/frozen_state.h"

namespace predump::core {

// NT_PRSTATUS of the first thread, NT_PRPSINFO, NT_AUXV, NT_FILE, the first thread's NT_FPREGSET
// and NT_X86_XSTATE, and these three for each other thread. There is no NT_SIGINFO: a process that
// runs on was stopped by no signal.
std::string BuildNotes(const FrozenState& state);

}  // namespace predump::core

#endif  // PREDUMP_CORE_NOTES_H_
