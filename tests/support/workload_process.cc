#include "tests/support/workload_process.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "src/base/errors.h"
#include "src/base/unique_fd.h"

namespace predump::test_support {

std::string WorkloadPath(absl::string_view name) {
  return absl::StrCat(PREDUMP_WORKLOAD_DIR "/", name);
}

absl::StatusOr<WorkloadProcess> WorkloadProcess::Start(absl::string_view name,
                                                       const std::string& report_path,
                                                       const std::vector<std::string>& options) {
  StartOptions start;
  start.argv = {WorkloadPath(name), "--report", report_path};
  start.argv.insert(start.argv.end(), options.begin(), options.end());
  PREDUMP_ASSIGN_OR_RETURN(ChildProcess child, ChildProcess::Start(start));
  absl::StatusOr<ReportFile> report = ReportFile::Open(report_path);
  if (!report.ok()) return base::Annotate(report.status(), absl::StrJoin(start.argv, " "));
  // A report left by an earlier program is there at once; this one's bears its own pid.
  const absl::Time end = absl::Now() + absl::Seconds(60);
  while (report->report().pid != child.pid() || report->progress() == 0) {
    absl::StatusOr<ExitStatus> ended = child.Wait(absl::Milliseconds(1));
    if (ended.ok() || absl::Now() > end) {
      return absl::InternalError(absl::StrCat(absl::StrJoin(start.argv, " "), ": ",
                                              ended.ok() ? ended->ToString() : "no progress", " ",
                                              report->FirstError()));
    }
  }
  return WorkloadProcess(std::move(child), *std::move(report));
}

absl::Status WorkloadProcess::StopAndJudge(absl::Duration deadline) {
  PREDUMP_ASSIGN_OR_RETURN(const ExitStatus status, child_.Terminate(deadline));
  PREDUMP_RETURN_IF_ERROR(report_.Health());
  if (status.ok() && report_.report().finished == 1) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(report_.report().name, ": ", status.ToString()));
}

absl::Status WorkloadProcess::CorruptPages(size_t count) {
  PREDUMP_ASSIGN_OR_RETURN(const uint64_t start, report_.CounterValue("memory_start"));
  const std::string path = absl::StrCat("/proc/", pid(), "/mem");
  const base::UniqueFd memory(open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!memory.valid()) return base::ErrnoError(errno, "open ", path);
  for (size_t i = 0; i < count; ++i) {
    constexpr size_t kPageBytes = 4096;
    const uint64_t spoiled = 0xBAD;
    // Neither the first nor the last word, which a lazy check would look at.
    const auto where = static_cast<off_t>(start + i * kPageBytes + 0x7A8);
    if (pwrite(memory.get(), &spoiled, sizeof spoiled, where) != sizeof spoiled) {
      return base::ErrnoError(errno, "pwrite ", path);
    }
  }
  return absl::OkStatus();
}

}  // namespace predump::test_support
