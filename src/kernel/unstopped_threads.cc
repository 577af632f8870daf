#include "src/kernel/unstopped_threads.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/kernel/procfs_task.h"

namespace predump::kernel {
namespace {

// How long a thread stands still at most that has stopped while another is waited for.
constexpr absl::Duration kLookAgain = absl::Milliseconds(1);

}  // namespace

bool WaitsUninterruptibly(const ProcessHandle& process, pid_t tid) {
  const absl::StatusOr<StatFields> stat = ReadThreadStat(process, tid);
  return stat.ok() && stat->state == 'D';
}

absl::Status DidNotStop(const ProcessHandle& process, pid_t tid, absl::Duration timeout) {
  const std::string comm = ReadThreadComm(process, tid).value_or("?");
  const std::string wait_channel = ReadThreadWaitChannel(process, tid).value_or("?");
  return absl::DeadlineExceededError(
      absl::StrCat("thread ", tid, " (", comm, ") did not stop within ",
                   absl::FormatDuration(timeout), ": it waits in ", wait_channel));
}

UnstoppedThreads::~UnstoppedThreads() {
  LetGoOfStopped().IgnoreError();
  for (Tracee& thread : threads_) thread.Abandon();
}

void UnstoppedThreads::Add(Tracee thread) {
  if (threads_.empty()) last_look_ns_ = base::MonotonicNanoseconds();
  threads_.push_back(std::move(thread));
}

bool UnstoppedThreads::Contains(pid_t tid) const {
  return std::any_of(threads_.begin(), threads_.end(),
                     [&](const Tracee& thread) { return thread.tid() == tid; });
}

absl::Status UnstoppedThreads::LetGoOfStopped(absl::Duration patience) {
  const int64_t look_ns = base::MonotonicNanoseconds();
  absl::Status first_error;
  std::vector<Tracee> left;
  for (Tracee& thread : threads_) {
    // Its stop or exit ends the wait for the first one; those of the others do not.
    const absl::Status status = thread.Detach(0, std::exchange(patience, absl::ZeroDuration()));
    if (status.ok()) stopped_ += absl::Nanoseconds(base::MonotonicNanoseconds() - last_look_ns_);
    if (absl::IsDeadlineExceeded(status)) {
      left.push_back(std::move(thread));
    } else if (!base::IsTargetExited(status)) {
      first_error.Update(status);
    }
  }
  threads_ = std::move(left);
  last_look_ns_ = look_ns;
  return first_error;
}

absl::Status UnstoppedThreads::LetGoOfAll(int64_t deadline_ns) {
  PREDUMP_RETURN_IF_ERROR(LetGoOfStopped());
  while (!threads_.empty()) {
    const int64_t left = deadline_ns - base::MonotonicNanoseconds();
    if (left <= 0) {
      return absl::DeadlineExceededError(absl::StrCat("thread ", first(), " has not stopped"));
    }
    PREDUMP_RETURN_IF_ERROR(LetGoOfStopped(std::min(kLookAgain, absl::Nanoseconds(left))));
  }
  return absl::OkStatus();
}

}  // namespace predump::kernel
