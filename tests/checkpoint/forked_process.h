// A child that sets something up and then stands still, to be captured.
#ifndef PREDUMP_TESTS_CHECKPOINT_FORKED_PROCESS_H_
#define PREDUMP_TESTS_CHECKPOINT_FORKED_PROCESS_H_

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/state.pb.h"
#include "src/checkpoint/capture.h"
#include "src/kernel/freezer.h"
#include "src/kernel/process.h"
#include "src/pagemap/vma.h"

namespace predump::checkpoint::testing {

// Forks a child in a session of its own with 0, 1 and 2 on /dev/null and nothing else open, runs
// `set_up` there, then `go_on` (by default it sleeps for ever). Killed and reaped with the object.
class ForkedProcess {
 public:
  using Body = std::function<void()>;
  // Returns when `set_up` is done. Aborts the test program where the child could not be made.
  explicit ForkedProcess(const Body& set_up, const Body& go_on = {});
  ForkedProcess(const ForkedProcess&) = delete;
  ForkedProcess& operator=(const ForkedProcess&) = delete;
  ~ForkedProcess();

  pid_t pid() const { return pid_; }
  const kernel::ProcessHandle& handle() const { return *handle_; }

  // Returns once that thread is asleep in that system call; and once all threads are in pause(2).
  void AwaitCall(pid_t tid, int64_t number) const;
  void AwaitPauses() const;

 private:
  pid_t pid_ = 0;
  std::optional<kernel::ProcessHandle> handle_;
};

// Survey, freeze, Capture, thaw.
absl::StatusOr<proto::ProcessState> CaptureOnce(const kernel::ProcessHandle& process,
                                                const CaptureOptions& options = {});
// Only the blockers of a survey, each as "what: reason".
absl::StatusOr<std::vector<std::string>> BlockersOf(const kernel::ProcessHandle& process,
                                                    const CaptureOptions& options = {});

// The file a descriptor of the state refers to, and its extra; a failure and an empty message where
// there is none.
const criu::file_entry& FileOf(const proto::ProcessState& state, uint32_t fd);
const proto::FileExtra* ExtraOf(const proto::ProcessState& state, uint32_t fd);

// For use in a child: forks a process that keeps what is open there, until the child dies.
void ForkHolder();

// For use in a child: asks for slices of CPU time of that length (Linux 6.12).
void SetTimeSlice(uint64_t nanoseconds);

// For use in a child: ends it with a message when `condition` is false.
void Require(bool condition, const char* what);

}  // namespace predump::checkpoint::testing

#endif  // PREDUMP_TESTS_CHECKPOINT_FORKED_PROCESS_H_
