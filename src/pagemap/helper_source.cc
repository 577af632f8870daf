#include "src/pagemap/helper_source.h"

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "src/base/errors.h"
#include "src/kernel/splice.h"

namespace predump::pagemap {
namespace {

using base::ByteCount;

constexpr size_t kFallbackBytes = 256 << 10;
constexpr absl::Duration kEndOfBoth = absl::Milliseconds(20);

}  // namespace

absl::StatusOr<std::unique_ptr<HelperSource>> HelperSource::Create(
    const kernel::ProcessHandle& process, kernel::HelperTask helper) {
  PREDUMP_ASSIGN_OR_RETURN(UnreadablePages unreadable, UnreadablePages::Open(process));
  PREDUMP_ASSIGN_OR_RETURN(base::MappedRegion buffer,
                           base::MappedRegion::Anonymous(kFallbackBytes));
  return std::unique_ptr<HelperSource>(
      new HelperSource(process, std::move(helper), std::move(unreadable), std::move(buffer)));
}

absl::StatusOr<FetchResult> HelperSource::Fetch(std::span<const Extent> wanted) {
  if (copying_ != nullptr) return copying_->Fetch(wanted);
  if (in_pipe_ > ByteCount(0) || in_buffer_ > ByteCount(0)) {
    return absl::FailedPreconditionError("the pages fetched before were not pushed");
  }
  // The helper keeps the memory alive beyond the process, so reading it would go on working.
  PREDUMP_ASSIGN_OR_RETURN(const bool exited, process_.HasExited());
  if (exited) return base::TargetExited(absl::StrCat("process ", process_.pid(), " has exited"));

  FetchResult result;
  const std::vector<Extent> first = FirstBytes(wanted, helper_.pipe_capacity());
  if (first.empty()) return result;
  const absl::StatusOr<ByteCount> queued = helper_.Vmsplice(first);
  if (absl::IsUnavailable(queued.status())) {
    PREDUMP_RETURN_IF_ERROR(GoOnByCopying());
    return copying_->Fetch(wanted);
  }
  PREDUMP_ASSIGN_OR_RETURN(in_pipe_, queued);
  if (in_pipe_ > ByteCount(0)) {
    result.fetched = FirstBytes(first, in_pipe_);
    result.consumed = base::ToPages(in_pipe_);
    return result;
  }
  PREDUMP_ASSIGN_OR_RETURN(const UnreadablePages::Result page,
                           unreadable_.Read(wanted.front(), buffer_.bytes()));
  AppendExtent(result.fetched, page.read);
  AppendExtent(result.vanished, page.vanished);
  result.consumed = page.read.pages() + page.vanished.pages();
  in_buffer_ = page.read.size();
  return result;
}

// What it was about to queue was not announced yet and goes with its pipe.
absl::Status HelperSource::GoOnByCopying() {
  // Where memory ran out, the kernel kills all who share it: the process follows in a moment.
  PREDUMP_ASSIGN_OR_RETURN(const bool exited, process_.WaitForExit(kEndOfBoth));
  if (exited) return base::TargetExited(absl::StrCat("process ", process_.pid(), " has exited"));
  PREDUMP_ASSIGN_OR_RETURN(copying_, ReadvSource::Create(process_));
  helper_.Finish().IgnoreError();  // what cannot be wiped is known as ours
  return absl::OkStatus();
}

absl::Status HelperSource::PushTo(int out_fd) {
  if (copying_ != nullptr) return copying_->PushTo(out_fd);
  const ByteCount in_pipe = std::exchange(in_pipe_, ByteCount(0));
  const ByteCount in_buffer = std::exchange(in_buffer_, ByteCount(0));
  if (in_pipe > ByteCount(0)) {
    return kernel::SpliceAll(helper_.pipe(), out_fd, in_pipe, /*more=*/false);
  }
  return WriteCopying(out_fd, buffer_.bytes().first(in_buffer.value()));
}

}  // namespace predump::pagemap
