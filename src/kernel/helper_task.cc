#include "src/kernel/helper_task.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <vector>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/kernel/wait.h"

namespace predump::kernel {
namespace {

// A fault the application's own userfaultfd or a dead file server does not answer.
constexpr absl::Duration kCallTimeout = absl::Seconds(10);

}  // namespace

HelperTask& HelperTask::operator=(HelperTask&& other) noexcept {
  if (this != &other) {
    Finish().IgnoreError();
    tracee_ = std::move(other.tracee_);
    memory_ = std::move(other.memory_);
    pidfd_ = std::move(other.pidfd_);
    pipe_ = std::move(other.pipe_);
    capacity_ = other.capacity_;
    remote_pipe_ = other.remote_pipe_;
    padding_ = other.padding_;
    table_ = other.table_;
    max_ranges_ = other.max_ranges_;
    at_entry_ = other.at_entry_;
  }
  return *this;
}

HelperTask::~HelperTask() { Finish().IgnoreError(); }

absl::StatusOr<int64_t> HelperTask::Call(uint64_t number, std::span<const uint64_t> arguments) {
  // The stop at the entry of the next exit_group is waited for only now, when it has long come.
  if (!at_entry_) {
    PREDUMP_RETURN_IF_ERROR(tracee_.WaitForStop(kCallTimeout));
    at_entry_ = true;
  }
  PREDUMP_ASSIGN_OR_RETURN(user_regs_struct registers, tracee_.GetRegisters());
  std::array<uint64_t, 6> values{};
  std::copy(arguments.begin(), arguments.end(), values.begin());
  // At a syscall entry the number is what orig_rax says when the tracer lets go.
  registers.orig_rax = number;
  registers.rdi = values[0];
  registers.rsi = values[1];
  registers.rdx = values[2];
  registers.r10 = values[3];
  registers.r8 = values[4];
  registers.r9 = values[5];
  PREDUMP_RETURN_IF_ERROR(tracee_.SetRegisters(registers));
  PREDUMP_RETURN_IF_ERROR(tracee_.ContinueToSyscall());
  at_entry_ = false;
  PREDUMP_ASSIGN_OR_RETURN(WaitEvent event, tracee_.WaitForStop(kCallTimeout));
  while (event.kind != WaitEvent::Kind::kSyscallStop) {
    // A SIGSTOP for the whole process group reaches the helper too and means nothing to it.
    PREDUMP_RETURN_IF_ERROR(tracee_.ContinueToSyscall());
    PREDUMP_ASSIGN_OR_RETURN(event, tracee_.WaitForStop(kCallTimeout));
  }
  PREDUMP_ASSIGN_OR_RETURN(registers, tracee_.GetRegisters());
  PREDUMP_RETURN_IF_ERROR(tracee_.ContinueToSyscall());
  return static_cast<int64_t>(registers.rax);
}

absl::StatusOr<int64_t> HelperTask::VmspliceTable(std::span<const base::AddressRange> ranges) {
  std::vector<struct iovec> table;
  table.reserve(ranges.size());
  for (const base::AddressRange& range : ranges) {
    table.push_back({reinterpret_cast<void*>(range.start().value()), range.size().value()});
  }
  PREDUMP_RETURN_IF_ERROR(memory_.Write(table_, std::as_bytes(std::span(table))));
  const uint64_t arguments[] = {static_cast<uint64_t>(remote_pipe_), table_.value(), table.size(),
                                SPLICE_F_NONBLOCK};
  return Call(SYS_vmsplice, arguments);
}

absl::StatusOr<base::ByteCount> HelperTask::Vmsplice(std::span<const base::AddressRange> ranges) {
  base::ByteCount queued;
  while (!ranges.empty()) {
    const auto part = ranges.first(std::min(ranges.size(), max_ranges_));
    base::ByteCount wanted;
    for (const base::AddressRange& range : part) wanted += range.size();
    PREDUMP_ASSIGN_OR_RETURN(const int64_t result, VmspliceTable(part));
    if (result == -EAGAIN || result == -EFAULT) return queued;
    if (result < 0) return base::ErrnoError(static_cast<int>(-result), "vmsplice in the helper");
    queued += base::ByteCount(static_cast<uint64_t>(result));
    if (static_cast<uint64_t>(result) < wanted.value()) return queued;
    ranges = ranges.subspan(part.size());
  }
  return queued;
}

absl::Status HelperTask::Finish() {
  if (tracee_.tid() == 0) return absl::OkStatus();
  // The helper stands still in the kernel and never runs the code again that is wiped here.
  const std::vector<std::byte> zeros(padding_.size().value());
  absl::Status status = memory_.Write(padding_.start(), zeros);
  if (base::IsTargetExited(status)) status = absl::OkStatus();
  if (::syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0) != 0 && errno != ESRCH) {
    status.Update(base::ErrnoError(errno, "kill the helper"));
  }
  for (;;) {
    const absl::Status exited = tracee_.WaitForStop(kCallTimeout).status();
    if (exited.ok()) continue;
    if (!base::IsTargetExited(exited)) status.Update(exited);
    break;
  }
  tracee_.Abandon();
  pipe_ = base::UniqueFd();
  pidfd_ = base::UniqueFd();
  return status;
}

}  // namespace predump::kernel
