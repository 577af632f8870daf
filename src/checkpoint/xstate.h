// An XSAVE area, as ptrace gives it, in the words of CRIU's messages.
#ifndef PREDUMP_CHECKPOINT_XSTATE_H_
#define PREDUMP_CHECKPOINT_XSTATE_H_

#include <cstddef>
#include <span>

#include "absl/status/status.h"
#include "proto/criu_core.pb.h"

namespace predump::checkpoint {

// Fills `fpregs` from an area in standard format (NT_X86_XSTATE). Components the area does not have
// or that are in their initial state are left out, as xstate_bv says. What CRIU's message cannot
// say (AMX tiles) travels only in the raw area. DataLoss: shorter than its fixed part.
absl::Status DecodeXstate(std::span<const std::byte> area, criu::user_x86_fpregs_entry& fpregs);

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_XSTATE_H_
