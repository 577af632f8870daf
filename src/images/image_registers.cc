#include "src/images/image_registers.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

#include <cstdint>
#include <optional>

#include "src/images/image_constants.h"

namespace predump::images {
namespace {

// include/linux/errno.h of the kernel: never seen by a program, but by its tracer.
constexpr int64_t kErestartsys = 512;
constexpr int64_t kErestartnointr = 513;
constexpr uint64_t kSyscallInstructionBytes = 2;

// Place of signal `number` among the 62 actions: SIGKILL and SIGSTOP have none.
std::optional<int> ActionIndex(int number) {
  if (number < 1 || number > 64 || number == SIGKILL || number == SIGSTOP) return std::nullopt;
  return number - 1 - (number > SIGKILL) - (number > SIGSTOP);
}

// Whether a handler will run for one of these before the thread's own code does, and the call then
// ends with EINTR.
bool EndsCall(const criu::signal_queue_entry& queue, const criu::task_core_entry& task,
              uint64_t blocked, int64_t error) {
  for (const auto& entry : queue.signals()) {
    int32_t number = 0;
    if (entry.siginfo().size() < sizeof number) continue;
    ::memcpy(&number, entry.siginfo().data(), sizeof number);
    const auto index = ActionIndex(number);
    if (!index.has_value() || *index >= task.sigactions_size()) continue;
    if ((blocked >> (number - 1) & 1) != 0) continue;
    const criu::sa_entry& action = task.sigactions(*index);
    const bool has_handler = action.sigaction() > 1;  // neither SIG_DFL nor SIG_IGN
    const bool restarts = error == kErestartsys && (action.flags() & SA_RESTART) != 0;
    if (has_handler && !restarts) return true;
  }
  return false;
}

}  // namespace

criu::user_x86_regs_entry ImageRegisters(const proto::ThreadState& thread,
                                         const criu::task_core_entry& task) {
  criu::user_x86_regs_entry registers = thread.core().thread_info().gpregs();
  if (!thread.extra().has_interrupted_call()) return registers;
  const proto::InterruptedCall& call = thread.extra().interrupted_call();
  const int64_t error = -call.result();
  if (registers.ax() != static_cast<uint64_t>(call.number()) || error == kErestartnointr) {
    return registers;
  }
  const criu::thread_core_entry& core = thread.core().thread_core();
  const uint64_t blocked = thread.core().has_tc() ? task.blk_sigset() : core.blk_sigset();
  if (EndsCall(core.signals_p(), task, blocked, error) ||
      EndsCall(task.signals_s(), task, blocked, error)) {
    registers.set_ax(static_cast<uint64_t>(-int64_t{EINTR}));
    registers.set_ip(registers.ip() + kSyscallInstructionBytes);
  }
  return registers;
}

}  // namespace predump::images
