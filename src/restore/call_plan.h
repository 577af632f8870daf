// A list of system calls for one thread of the landing, being written.
//
// Wraps kernel::RemoteBatch so that hundreds of calls can be listed without a status each: the
// first problem (no room) is kept and reported by status(). Expect() notes results that must come
// out exactly so, such as a predicted descriptor; Verify() compares them after the run.
#ifndef PREDUMP_RESTORE_CALL_PLAN_H_
#define PREDUMP_RESTORE_CALL_PLAN_H_

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "src/kernel/remote_batch.h"
#include "src/restore/plan_room.h"
#include "src/restore/trampoline.h"

namespace predump::restore::internal {

class CallPlan {
 public:
  using Id = kernel::RemoteBatch::CallId;
  using Argument = kernel::RemoteBatch::Argument;
  using OnError = kernel::RemoteBatch::OnError;

  // Takes that room from the trampoline.
  static absl::StatusOr<CallPlan> Create(Trampoline& trampoline, const PlanRoom& room);

  // `what` names the call in an error: "open /var/log/x (fd 3)".
  Id Call(uint64_t number, std::initializer_list<Argument> arguments, std::string what,
          OnError on_error = OnError::kStop);
  void Expect(Id call, int64_t result) { expectations_.push_back({call, result}); }

  // Addresses in the landing.
  uint64_t String(absl::string_view text);
  uint64_t Bytes(absl::string_view bytes, size_t alignment = 8);
  template <typename T>
  uint64_t Struct(const T& value) {
    return Keep(batch_.AddStruct(value));
  }
  uint64_t Room(size_t bytes) { return Keep(batch_.Allocate(bytes)); }

  // Whether everything fitted.
  absl::Status status() const { return status_; }
  kernel::RemoteBatch& batch() { return batch_; }
  // After the run.
  absl::Status Verify() const;

 private:
  struct Expectation {
    Id call;
    int64_t result;
  };
  explicit CallPlan(kernel::RemoteBatch batch) : batch_(std::move(batch)) {}
  uint64_t Keep(absl::StatusOr<base::RemoteAddress> address);

  kernel::RemoteBatch batch_;
  std::vector<Expectation> expectations_;
  absl::Status status_;
};

}  // namespace predump::restore::internal

#endif  // PREDUMP_RESTORE_CALL_PLAN_H_
