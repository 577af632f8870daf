#include "tests/support/report_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "src/base/errors.h"
#include "src/base/unique_fd.h"

namespace predump::test_support {
namespace {

constexpr absl::Duration kLookAgain = absl::Milliseconds(1);

// Empty where the file is not a finished report yet.
absl::StatusOr<std::optional<base::MappedRegion>> TryMap(const std::string& path) {
  const base::UniqueFd fd(open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!fd.valid()) {
    if (errno == ENOENT) return std::nullopt;
    return base::ErrnoError(errno, "open ", path);
  }
  struct stat status;
  if (fstat(fd.get(), &status) == -1) return base::ErrnoError(errno, "fstat ", path);
  if (status.st_size != static_cast<off_t>(workloads::kReportBytes)) return std::nullopt;
  PREDUMP_ASSIGN_OR_RETURN(
      base::MappedRegion page,
      base::MappedRegion::Shared(fd.get(), 0, workloads::kReportBytes, PROT_READ | PROT_WRITE));
  const auto* report = reinterpret_cast<const workloads::Report*>(page.data());
  if (report->magic.load(std::memory_order_acquire) != workloads::kReportMagic) return std::nullopt;
  if (report->version != workloads::kReportVersion || report->size != sizeof(*report)) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": report of another version"));
  }
  return page;
}

}  // namespace

absl::StatusOr<ReportFile> ReportFile::Open(const std::string& path, absl::Duration deadline) {
  const absl::Time end = absl::Now() + deadline;
  for (;;) {
    PREDUMP_ASSIGN_OR_RETURN(std::optional<base::MappedRegion> page, TryMap(path));
    if (page.has_value()) return ReportFile(*std::move(page));
    if (absl::Now() >= end) {
      return absl::DeadlineExceededError(absl::StrCat(path, ": no report was published"));
    }
    absl::SleepFor(kLookAgain);
  }
}

const workloads::Report& ReportFile::report() const {
  return *reinterpret_cast<const workloads::Report*>(page_.data());
}

absl::Duration ReportFile::LongestGap() const {
  return absl::Nanoseconds(static_cast<int64_t>(report().longest_gap_reset_ns.load()));
}

absl::StatusOr<uint64_t> ReportFile::CounterValue(absl::string_view name) const {
  const uint64_t count = report().counter_count.load(std::memory_order_acquire);
  for (size_t i = 0; i < count && i < std::size(report().counters); ++i) {
    const workloads::NamedCounter& counter = report().counters[i];
    if (name == absl::string_view(counter.name, strnlen(counter.name, sizeof counter.name))) {
      return counter.value.load();
    }
  }
  return absl::NotFoundError(absl::StrCat("no counter ", name));
}

std::string ReportFile::ErrorText(const char* text) const {
  std::string copy;
  for (int attempt = 0; attempt < 1000; ++attempt) {
    const uint64_t before = report().error_sequence;
    copy.assign(text, strnlen(text, sizeof report().last_error));
    if (before % 2 == 0 && report().error_sequence == before) break;
  }
  return copy;
}

std::string ReportFile::FirstError() const { return ErrorText(report().first_error); }
std::string ReportFile::LastError() const { return ErrorText(report().last_error); }

template <typename Condition>
absl::Status ReportFile::WaitUntil(Condition condition, absl::Duration deadline,
                                   absl::string_view what) const {
  const absl::Time end = absl::Now() + deadline;
  while (!condition()) {
    if (absl::Now() >= end) {
      return absl::DeadlineExceededError(absl::StrCat(
          report().name, ": no ", what, " within ", absl::FormatDuration(deadline), "; progress ",
          progress(), ", errors ", errors(), ", eintr ", eintr(), " ", LastError()));
    }
    absl::SleepFor(kLookAgain);
  }
  return absl::OkStatus();
}

absl::Status ReportFile::WaitForProgress(uint64_t steps, absl::Duration deadline) const {
  const uint64_t goal = progress() + steps;
  return WaitUntil([&] { return progress() >= goal; }, deadline,
                   absl::StrCat("progress of ", steps));
}

absl::Status ReportFile::WaitForErrors(uint64_t at_least, absl::Duration deadline) const {
  return WaitUntil([&] { return errors() >= at_least; }, deadline, "error");
}

absl::Status ReportFile::WaitForEintr(uint64_t at_least, absl::Duration deadline) const {
  return WaitUntil([&] { return eintr() >= at_least; }, deadline, "EINTR");
}

absl::StatusOr<int> ReportFile::WaitForVerdict(absl::Duration deadline) const {
  PREDUMP_RETURN_IF_ERROR(WaitUntil([&] { return report().finished != 0; }, deadline, "verdict"));
  return static_cast<int>(report().exit_code.load());
}

absl::Status ReportFile::ResetGap(absl::Duration deadline) {
  auto* writable = reinterpret_cast<workloads::Report*>(page_.data());
  const uint64_t request = writable->gap_reset_request + 1;
  writable->gap_reset_request = request;
  return WaitUntil([&] { return report().gap_reset_done == request; }, deadline, "gap reset");
}

absl::Status ReportFile::Health() const {
  if (errors() == 0 && eintr() == 0 && report().restarts == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(report().name, ": errors ", errors(),
                                                    ", eintr ", eintr(), ", restarts ",
                                                    report().restarts.load(), ": ", FirstError()));
}

}  // namespace predump::test_support
