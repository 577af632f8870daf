#include "src/pagemap/helper_source.h"

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "src/base/errors.h"

namespace predump::pagemap {
namespace {

constexpr absl::Duration kEndOfBoth = absl::Milliseconds(20);

}  // namespace

absl::StatusOr<std::unique_ptr<HelperSource>> HelperSource::Create(
    const kernel::ProcessHandle& process, kernel::HelperTask helper) {
  PREDUMP_ASSIGN_OR_RETURN(SecondWay second_way, SecondWay::Open(process));
  return std::unique_ptr<HelperSource>(
      new HelperSource(process, std::move(second_way), std::move(helper)));
}

absl::StatusOr<FetchResult> HelperSource::Fetch(std::span<const Extent> wanted) {
  if (copying_ == nullptr) {
    absl::StatusOr<FetchResult> result = SplicedSource::Fetch(wanted);
    if (!absl::IsUnavailable(result.status())) return result;
    PREDUMP_RETURN_IF_ERROR(GoOnByCopying());
  }
  return copying_->Fetch(wanted);
}

// What it was about to queue was not announced yet and goes with its pipe.
absl::Status HelperSource::GoOnByCopying() {
  // Where memory ran out, the kernel kills all who share it: the process follows in a moment.
  PREDUMP_ASSIGN_OR_RETURN(const bool exited, process().WaitForExit(kEndOfBoth));
  if (exited) {
    return base::TargetExited(absl::StrCat("process ", process().pid(), " has exited"));
  }
  PREDUMP_ASSIGN_OR_RETURN(copying_, ReadvSource::Create(process()));
  helper_.Finish().IgnoreError();  // what cannot be wiped is known as ours
  return absl::OkStatus();
}

absl::Status HelperSource::Push(int out_fd, base::ByteCount bytes) {
  return copying_ != nullptr ? copying_->Push(out_fd, bytes) : SplicedSource::Push(out_fd, bytes);
}

}  // namespace predump::pagemap
