// A workload's report, read from outside while it runs, wherever it runs.
#ifndef PREDUMP_TESTS_SUPPORT_REPORT_FILE_H_
#define PREDUMP_TESTS_SUPPORT_REPORT_FILE_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "src/base/mapped_region.h"
#include "tests/workloads/report.h"

namespace predump::test_support {

// Maps the report file; the mapping stays right when the workload goes on in another process over
// the same file. The page changes without an event, so waiting is looking again every millisecond.
class ReportFile {
 public:
  // Waits until the workload has published its report. DeadlineExceeded otherwise.
  static absl::StatusOr<ReportFile> Open(const std::string& path,
                                         absl::Duration deadline = absl::Seconds(10));

  const workloads::Report& report() const;
  uint64_t progress() const { return report().progress; }
  uint64_t errors() const { return report().errors; }
  uint64_t eintr() const { return report().eintr; }
  // Longest time between two heartbeats since ResetGap(), or since the start.
  absl::Duration LongestGap() const;
  // A counter of the workload's own. NotFound: it has none of that name.
  absl::StatusOr<uint64_t> CounterValue(absl::string_view name) const;
  std::string FirstError() const;
  std::string LastError() const;

  // Until `progress` has grown by `steps` from what it is now. DeadlineExceeded with the workload's
  // last error and progress.
  absl::Status WaitForProgress(uint64_t steps, absl::Duration deadline) const;
  // Until the condition on a counter of the report holds.
  absl::Status WaitForErrors(uint64_t at_least, absl::Duration deadline) const;
  absl::Status WaitForEintr(uint64_t at_least, absl::Duration deadline) const;
  // Until the final check is done; its exit code. This works where the process is not our child.
  absl::StatusOr<int> WaitForVerdict(absl::Duration deadline) const;
  // Has the gap measured anew and waits until that has begun.
  absl::Status ResetGap(absl::Duration deadline);

  // OK while nothing was ever wrong: no error, no EINTR, no restart. FailedPrecondition with the
  // first error otherwise.
  absl::Status Health() const;

 private:
  explicit ReportFile(base::MappedRegion page) : page_(std::move(page)) {}
  template <typename Condition>
  absl::Status WaitUntil(Condition condition, absl::Duration deadline,
                         absl::string_view what) const;
  std::string ErrorText(const char* text) const;

  base::MappedRegion page_;
};

}  // namespace predump::test_support

#endif  // PREDUMP_TESTS_SUPPORT_REPORT_FILE_H_
