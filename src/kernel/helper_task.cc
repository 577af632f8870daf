#include "src/kernel/helper_task.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <vector>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/kernel/splice.h"
#include "src/kernel/wait.h"

namespace predump::kernel {
namespace {

// A fault the application's own userfaultfd or a dead file server does not answer.
constexpr absl::Duration kCallTimeout = absl::Seconds(10);
constexpr uint64_t kTableAlignment = 16;

// A SIGSTOP or SIGCONT for the process group reaches the helper too, and means nothing to it. All
// other signals are blocked.
absl::StatusOr<int> DropSignal(const WaitEvent&) { return 0; }

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

absl::StatusOr<HelperTask> HelperTask::Start(Tracee tracee, base::AddressRange padding,
                                             base::ByteCount program,
                                             base::ByteCount pipe_capacity) {
  HelperTask helper(std::move(tracee), padding);
  const pid_t tid = helper.tid();
  PREDUMP_ASSIGN_OR_RETURN(helper.memory_, ProcessMemory::OpenThread(tid, O_RDWR));
  helper.pidfd_ = base::UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, tid, 0)));
  if (!helper.pidfd_.valid()) return base::ErrnoError(errno, "pidfd_open of the helper");
  const uint64_t table = (padding.start() + program).value() + kTableAlignment - 1;
  helper.table_ = base::RemoteAddress(table / kTableAlignment * kTableAlignment);
  helper.max_ranges_ = (padding.end() - helper.table_).value() / sizeof(struct iovec);

  PREDUMP_RETURN_IF_ERROR(helper.tracee_.WaitForStop(kCallTimeout));
  PREDUMP_RETURN_IF_ERROR(helper.tracee_.SetOptions(PTRACE_O_TRACESYSGOOD));
  PREDUMP_ASSIGN_OR_RETURN(const uint64_t ends, helper.RunToExit());
  // Only now: killed while it had its page mapped, it would have left that behind.
  PREDUMP_RETURN_IF_ERROR(helper.tracee_.SetOptions(PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL));
  const int read_end = static_cast<int>(ends & 0xffffffff);
  helper.remote_pipe_ = static_cast<int>(ends >> 32);
  helper.pipe_ = base::UniqueFd(
      static_cast<int>(::syscall(SYS_pidfd_getfd, helper.pidfd_.get(), read_end, 0)));
  if (!helper.pipe_.valid()) return base::ErrnoError(errno, "pidfd_getfd of the helper's pipe");
  const uint64_t arguments[] = {static_cast<uint64_t>(read_end)};
  PREDUMP_RETURN_IF_ERROR(helper.Call(SYS_close, arguments));
  PREDUMP_ASSIGN_OR_RETURN(helper.capacity_, ResizePipe(helper.pipe_.get(), pipe_capacity));
  return helper;
}

absl::StatusOr<uint64_t> HelperTask::RunToExit() {
  absl::Status failed;
  for (;;) {
    PREDUMP_RETURN_IF_ERROR(tracee_.RunToSyscallStop(kCallTimeout, DropSignal));
    PREDUMP_ASSIGN_OR_RETURN(const user_regs_struct entry, tracee_.GetRegisters());
    if (entry.orig_rax == SYS_exit_group) {
      at_entry_ = true;
      PREDUMP_RETURN_IF_ERROR(failed);
      return entry.r12;
    }
    PREDUMP_RETURN_IF_ERROR(tracee_.RunToSyscallStop(kCallTimeout, DropSignal));
    PREDUMP_ASSIGN_OR_RETURN(const user_regs_struct exit, tracee_.GetRegisters());
    const int64_t result = static_cast<int64_t>(exit.rax);
    if (result < 0 && result >= -4095) {
      failed.Update(base::ErrnoError(static_cast<int>(-result), "system call ", entry.orig_rax,
                                     " of the helper"));
    }
  }
}

absl::Status HelperTask::WaitForEntry(absl::Duration timeout) {
  if (!at_entry_) PREDUMP_RETURN_IF_ERROR(tracee_.WaitForSyscallStop(timeout, DropSignal));
  at_entry_ = true;
  return absl::OkStatus();
}

absl::StatusOr<int64_t> HelperTask::Call(uint64_t number, std::span<const uint64_t> arguments) {
  // This stop is waited for only now, when it has long come.
  PREDUMP_RETURN_IF_ERROR(WaitForEntry(kCallTimeout));
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
  at_entry_ = false;
  PREDUMP_RETURN_IF_ERROR(tracee_.RunToSyscallStop(kCallTimeout, DropSignal));
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
  PREDUMP_RETURN_IF_ERROR(memory_->Write(table_, std::as_bytes(std::span(table))));
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
    const absl::StatusOr<int64_t> called = VmspliceTable(part);
    if (base::IsTargetExited(called.status())) {
      return absl::UnavailableError(
          absl::StrCat("the helper task has ended: ", called.status().message()));
    }
    PREDUMP_ASSIGN_OR_RETURN(const int64_t result, called);
    if (result == -EAGAIN || result == -EFAULT) return queued;
    if (result < 0) return base::ErrnoError(static_cast<int>(-result), "vmsplice in the helper");
    queued += base::ByteCount(static_cast<uint64_t>(result));
    if (static_cast<uint64_t>(result) < wanted.value()) return queued;
    ranges = ranges.subspan(part.size());
  }
  return queued;
}

absl::Status HelperTask::WipePadding() {
  if (!memory_.has_value() || memory_->fd() < 0) return absl::OkStatus();  // done, or moved from
  const std::vector<std::byte> zeros(padding_.size().value());
  const absl::Status status = memory_->Write(padding_.start(), zeros);
  memory_.reset();
  return base::IsTargetExited(status) ? absl::OkStatus() : status;
}

absl::Status HelperTask::Finish() {
  absl::Status status;
  if (tracee_.tid() != 0) {
    // Standing still in the kernel, it never runs the code again that is wiped here. A kernel with
    // proc_mem.force_override=ptrace lets that through only while it is traced.
    if (WaitForEntry(absl::Seconds(1)).ok()) status = WipePadding();
  }
  if (tracee_.tid() != 0) {
    // Its number cannot belong to another task before we have waited for it.
    if (::kill(tracee_.tid(), SIGKILL) != 0) {
      status.Update(base::ErrnoError(errno, "kill the helper"));
    }
    absl::Status exited;
    while (exited.ok()) exited = tracee_.WaitForStop(kCallTimeout).status();
    if (!base::IsTargetExited(exited)) {
      tracee_.Abandon();
      memory_.reset();  // it may run the code still
      status.Update(exited);
    }
  }
  status.Update(WipePadding());
  pipe_ = base::UniqueFd();
  pidfd_ = base::UniqueFd();
  return status;
}

}  // namespace predump::kernel
