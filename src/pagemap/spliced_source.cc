#include "src/pagemap/spliced_source.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/kernel/splice.h"

namespace predump::pagemap {
namespace {

using base::ByteCount;

constexpr size_t kSecondWayBytes = 256 << 10;

}  // namespace

absl::StatusOr<SplicedSource::SecondWay> SplicedSource::SecondWay::Open(
    const kernel::ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(UnreadablePages unreadable, UnreadablePages::Open(process));
  PREDUMP_ASSIGN_OR_RETURN(base::MappedRegion buffer,
                           base::MappedRegion::Anonymous(kSecondWayBytes));
  return SecondWay{std::move(unreadable), std::move(buffer)};
}

absl::StatusOr<FetchResult> SplicedSource::Fetch(std::span<const Extent> wanted) {
  if (in_pipe_ > ByteCount(0) || in_buffer_ > ByteCount(0)) {
    return absl::FailedPreconditionError("the pages fetched before were not pushed");
  }
  // A helper keeps the memory alive beyond the process, so reading it would go on working.
  PREDUMP_ASSIGN_OR_RETURN(const bool exited, process_.HasExited());
  if (exited) return base::TargetExited(absl::StrCat("process ", process_.pid(), " has exited"));

  FetchResult result;
  const std::vector<Extent> first = FirstBytes(wanted, pipe_capacity());
  if (first.empty()) return result;
  PREDUMP_ASSIGN_OR_RETURN(in_pipe_, Queue(first));
  if (in_pipe_ > ByteCount(0)) {
    result.fetched = FirstBytes(first, in_pipe_);
    result.consumed = base::ToPages(in_pipe_);
    return result;
  }
  PREDUMP_ASSIGN_OR_RETURN(const UnreadablePages::Result page,
                           second_way_.unreadable.Read(wanted.front(), second_way_.buffer.bytes()));
  AppendExtent(result.fetched, page.read);
  AppendExtent(result.vanished, page.vanished);
  result.consumed = page.read.pages() + page.vanished.pages();
  in_buffer_ = page.read.size();
  buffer_done_ = ByteCount(0);
  return result;
}

absl::Status SplicedSource::Push(int out_fd, ByteCount bytes) {
  const ByteCount in_pipe = std::exchange(in_pipe_, ByteCount(0));
  const ByteCount in_buffer = std::exchange(in_buffer_, ByteCount(0));
  if (bytes > in_pipe + in_buffer) {
    return absl::FailedPreconditionError("more is to be pushed than was fetched");
  }
  if (in_pipe > ByteCount(0)) {
    PREDUMP_RETURN_IF_ERROR(kernel::SpliceAll(pipe_read_end(), out_fd, bytes, /*more=*/false));
    in_pipe_ = in_pipe - bytes;
    return absl::OkStatus();
  }
  PREDUMP_RETURN_IF_ERROR(WriteCopying(
      out_fd, second_way_.buffer.bytes().subspan(buffer_done_.value(), bytes.value())));
  in_buffer_ = in_buffer - bytes;
  buffer_done_ += bytes;
  return absl::OkStatus();
}

}  // namespace predump::pagemap
