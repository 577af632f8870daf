// A workload of tests/workloads, started here, with its report.
#ifndef PREDUMP_TESTS_SUPPORT_WORKLOAD_PROCESS_H_
#define PREDUMP_TESTS_SUPPORT_WORKLOAD_PROCESS_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "tests/support/child_process.h"
#include "tests/support/report_file.h"

namespace predump::test_support {

// The path of the program `name` as built ("heart", "python-counter.py", ...).
std::string WorkloadPath(absl::string_view name);

class WorkloadProcess {
 public:
  // Starts `name` reporting to `report_path` and waits until it has built up its state and runs
  // (its progress is no longer zero).
  static absl::StatusOr<WorkloadProcess> Start(absl::string_view name,
                                               const std::string& report_path,
                                               const std::vector<std::string>& options = {});

  ChildProcess& child() { return child_; }
  ReportFile& report() { return report_; }
  pid_t pid() const { return child_.pid(); }

  // SIGTERM, its final check, its end. OK if it exited with 0 and its report says nothing was ever
  // wrong; otherwise FailedPrecondition with what it found.
  absl::Status StopAndJudge(absl::Duration deadline = absl::Seconds(30));

  // Overwrites `count` pages of its checked memory, as a faulty migration would.
  absl::Status CorruptPages(size_t count);

 private:
  WorkloadProcess(ChildProcess child, ReportFile report)
      : child_(std::move(child)), report_(std::move(report)) {}

  ChildProcess child_;
  ReportFile report_;
};

}  // namespace predump::test_support

#endif  // PREDUMP_TESTS_SUPPORT_WORKLOAD_PROCESS_H_
