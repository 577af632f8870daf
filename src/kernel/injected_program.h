// What all programs injected into a live thread have in common: they block all signals, do their
// work, put the signal mask and every register back and jump to where the thread was, by
// themselves.
//
//   magic, data, entry: block all signals | work: the body | finish: mask, registers, flags, jump
//
// None uses the stack: the thread's own stays as it is, red zone included. Thread rule: values and
// free functions; the caller is the thread's tracer.
#ifndef PREDUMP_KERNEL_INJECTED_PROGRAM_H_
#define PREDUMP_KERNEL_INJECTED_PROGRAM_H_

#include <sys/user.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "src/base/units.h"
#include "src/kernel/process_memory.h"
#include "src/kernel/ptrace.h"

namespace predump::kernel {

struct InjectedProgram {
  std::vector<std::byte> bytes;  // begins with kPaddingMagic
  size_t entry = 0;              // offset of the first instruction
  size_t work = 0;               // of the body: the same, once all signals are blocked
};

// `body` is position-independent code that goes on behind its end. `resume` and `signal_mask` are
// what the program loads at its end (RestartRegisters).
InjectedProgram BuildInjectedProgram(std::span<const std::byte> body,
                                     const user_regs_struct& resume, uint64_t signal_mask);

// Bytes of a program with a body of `body_bytes`.
size_t InjectedProgramSize(size_t body_bytes);

// Whether the stopped thread may run one. Unimplemented: 32-bit code; FailedPrecondition: its
// system calls go to a handler, or it has not left a program in `padding`, of an engine that died.
absl::Status CheckMayRunProgram(const Tracee& thread, base::AddressRange padding);

// Writes the program to `place` and leaves the stopped thread at its work. `original` are the
// thread's registers. Whatever happens after the first step, the thread finishes the program.
absl::Status EnterProgram(const Tracee& thread, const ProcessMemory& memory,
                          base::RemoteAddress place, const InjectedProgram& program,
                          const user_regs_struct& original);

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_INJECTED_PROGRAM_H_
