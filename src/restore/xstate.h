// Extended processor state in the form PTRACE_SETREGSET takes.
#ifndef PREDUMP_RESTORE_XSTATE_H_
#define PREDUMP_RESTORE_XSTATE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/state.pb.h"

namespace predump::restore::internal {

// Bits of XCR0 of the components `thread` uses, by CRIU's fields, that this processor has not or
// that those fields have no room for. Zero where the bytes as captured are there: they decide then.
uint64_t MissingComponents(const proto::ThreadState& thread);

// The XSAVE area of `thread` for this processor. `fresh` is one the kernel gave here: its size is
// the one to have. The bytes as captured where the size is the same, else put together from CRIU's
// fields. FailedPrecondition where the thread uses a component this processor has not.
absl::StatusOr<std::vector<std::byte>> XstateFor(const proto::ThreadState& thread,
                                                 std::span<const std::byte> fresh);

}  // namespace predump::restore::internal

#endif  // PREDUMP_RESTORE_XSTATE_H_
