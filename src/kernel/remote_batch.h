// Many system calls in a traced task with one stop: a table walked by a small loop.
//
// For tasks that die with their tracer anyway (the landing). Code, table and data lie in one region
// that the task has mapped readable, writable and executable (or twice), and that we see through a
// local view of the same shared memory.
//
//   region: | loop code | table: {nr, args[6], result} ... | data area (strings, structs) |
//
// I1: the loop ends with tgkill(self, SIGSTOP) and a jump to itself (DESIGN 12.7): with all signals
//     blocked the SIGSTOP is the only signal that can stop the task, and it is dropped afterwards.
// I2: addresses handed out stay valid until Clear().
// Thread rule: one thread per batch; batches with regions of their own are independent.
#ifndef PREDUMP_KERNEL_REMOTE_BATCH_H_
#define PREDUMP_KERNEL_REMOTE_BATCH_H_

#include <sys/types.h>
#include <sys/user.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "src/base/units.h"
#include "src/kernel/ptrace.h"

namespace predump::kernel {

class RemoteBatch {
 public:
  // What a failed call means for those after it.
  enum class OnError { kStop, kContinue };

  struct CallId {
    size_t index = 0;
  };

  // An argument that is the result of an earlier call of the same batch (a descriptor, say).
  struct ResultOf {
    CallId call;
  };

  struct Argument {
    Argument(uint64_t v) : value(v) {}  // NOLINT: call sites
    Argument(int v) : value(static_cast<uint64_t>(static_cast<int64_t>(v))) {}  // NOLINT
    Argument(int64_t v) : value(static_cast<uint64_t>(v)) {}                    // NOLINT
    Argument(unsigned v) : value(v) {}                                          // NOLINT
    Argument(base::RemoteAddress a) : value(a.value()) {}                       // NOLINT
    Argument(ResultOf r) : value(0), result_of(r.call.index) {}                 // NOLINT
    uint64_t value;
    std::optional<size_t> result_of;
  };

  // `local` is our view of the memory the task sees at `remote`. `max_calls` sizes the table; the
  // rest is the data area. InvalidArgument if the region is too small.
  static absl::StatusOr<RemoteBatch> Create(base::RemoteAddress remote, std::span<std::byte> local,
                                            size_t max_calls);

  // Appends a call. A result in [-4095, -1] is an error; with kStop the loop ends there.
  // `description` stays on our side and names the call in errors. ResourceExhausted: table full.
  absl::StatusOr<CallId> Add(uint64_t number, std::span<const Argument> arguments,
                             std::string description, OnError on_error = OnError::kStop);
  absl::StatusOr<CallId> Add(uint64_t number, std::initializer_list<Argument> arguments,
                             std::string description, OnError on_error = OnError::kStop) {
    return Add(number, std::span(arguments.begin(), arguments.size()), std::move(description),
               on_error);
  }

  // Memory in the data area: zeroed, or a copy. ResourceExhausted where it is full.
  absl::StatusOr<base::RemoteAddress> Allocate(size_t bytes, size_t alignment = 8);
  absl::StatusOr<base::RemoteAddress> AddBytes(std::span<const std::byte> bytes,
                                               size_t alignment = 8);
  absl::StatusOr<base::RemoteAddress> AddString(absl::string_view text);  // NUL-terminated
  template <typename T>
  absl::StatusOr<base::RemoteAddress> AddStruct(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    return AddBytes(std::as_bytes(std::span(&value, 1)), alignof(T));
  }
  // Our view of `size` bytes at `address` (which an Allocate or Add gave).
  std::span<std::byte> View(base::RemoteAddress address, size_t size) const;

  // Registers with which a thread runs the batch: `base` (segments, fs_base ...) with rip, r12..r15
  // and orig_rax set. `tgid`/`tid` as the task itself knows them (its pid namespace).
  user_regs_struct StartRegisters(const user_regs_struct& base, pid_t tgid, pid_t tid) const;

  // Runs the batch in the stopped `thread`, whose signals are all blocked, and waits for its
  // SIGSTOP, which is dropped when the thread is resumed or detached. Registers are left inside the
  // batch. A clone event of the thread is passed over (the new task is the caller's to wait for).
  // Errors: the first failed kStop call, from its errno and with its description; DeadlineExceeded;
  // TargetExited.
  absl::Status Run(Tracee& thread, pid_t tgid, pid_t tid, absl::Duration timeout);
  // The halves of Run, for several threads at once.
  absl::Status Start(Tracee& thread, pid_t tgid, pid_t tid) const;
  absl::Status Finish(Tracee& thread, absl::Duration timeout) const;

  // Raw result (or -errno) of a call that was run.
  int64_t Result(CallId call) const;
  // The first failed call with kStop, if any, as an error.
  absl::Status FirstError() const;

  // Empties table and data area.
  void Clear();
  size_t size() const { return descriptions_.size(); }

 private:
  RemoteBatch() = default;

  base::RemoteAddress remote_;
  std::span<std::byte> local_;
  size_t max_calls_ = 0;
  size_t data_start_ = 0;
  size_t data_used_ = 0;
  std::vector<std::string> descriptions_;
  std::vector<OnError> policies_;
};

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_REMOTE_BATCH_H_
