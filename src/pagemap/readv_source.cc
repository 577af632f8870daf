#include "src/pagemap/readv_source.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/kernel/process_memory.h"

namespace predump::pagemap {
namespace {

using base::AddressRange;
using base::ByteCount;

// Cuts `bytes` off the front of extents[*first...], appending them to `taken`.
void MoveFront(std::vector<Extent>& extents, size_t& first, ByteCount bytes,
               std::vector<Extent>& taken) {
  while (bytes > ByteCount(0)) {
    Extent& extent = extents[first];
    const ByteCount part = std::min(bytes, extent.size());
    const uint64_t middle = (extent.start() + part).value();
    AppendExtent(taken, AddressRange::FromOrdered(extent.start().value(), middle));
    extent = AddressRange::FromOrdered(middle, extent.end().value());
    if (extent.empty()) ++first;
    bytes -= part;
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<ReadvSource>> ReadvSource::Create(
    const kernel::ProcessHandle& process, const ReadvOptions& options) {
  if (options.buffer < ReadvOptions::kSmallestBuffer ||
      options.buffer > ReadvOptions::kLargestBuffer ||
      options.buffer.value() % base::PageSize() != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("a buffer of ", options.buffer.value(),
                     " bytes: it must be whole pages, from 64 KiB to 4 MiB"));
  }
  PREDUMP_ASSIGN_OR_RETURN(UnreadablePages unreadable, UnreadablePages::Open(process));
  PREDUMP_ASSIGN_OR_RETURN(base::MappedRegion buffer,
                           base::MappedRegion::Anonymous(options.buffer.value(), true));
  return std::unique_ptr<ReadvSource>(
      new ReadvSource(process, std::move(unreadable), std::move(buffer)));
}

absl::StatusOr<FetchResult> ReadvSource::Fetch(std::span<const Extent> wanted) {
  if (held() > ByteCount(0)) {
    return absl::FailedPreconditionError("the pages fetched before were not pushed");
  }
  std::vector<Extent> left = FirstBytes(wanted, ByteCount(buffer_.size()));
  size_t first = 0;
  FetchResult result;
  ByteCount filled;
  while (first < left.size()) {
    PREDUMP_ASSIGN_OR_RETURN(
        ByteCount got,
        kernel::ReadProcessMemory(process_, std::span<const AddressRange>(left).subspan(first),
                                  buffer_.bytes().subspan(filled.value())));
    // A page is taken whole or left to the other way of reading it.
    got = base::ToBytes(base::ToPages(got));
    MoveFront(left, first, got, result.fetched);
    result.consumed += base::ToPages(got);
    filled += got;
    if (first == left.size()) break;

    // The whole extent, beyond what fits into the buffer: gigabytes may have vanished at once.
    const Extent extent =
        AddressRange::FromOrdered(left[first].start().value(), wanted[first].end().value());
    PREDUMP_ASSIGN_OR_RETURN(const UnreadablePages::Result rest,
                             unreadable_.Read(extent, buffer_.bytes().subspan(filled.value())));
    MoveFront(left, first, rest.read.size(), result.fetched);
    if (!rest.vanished.empty()) {
      AppendExtent(result.vanished, rest.vanished);
      left[first] = AddressRange::FromOrdered(
          std::min(left[first].end(), rest.vanished.end()).value(), left[first].end().value());
      if (left[first].empty()) ++first;
    }
    result.consumed += rest.read.pages() + rest.vanished.pages();
    filled += rest.read.size();
  }
  filled_ = filled;
  pushed_ = ByteCount(0);
  return result;
}

absl::Status ReadvSource::Push(int out_fd, ByteCount bytes) {
  const ByteCount done = std::exchange(pushed_, filled_);
  if (bytes > filled_ - done) {
    return absl::FailedPreconditionError("more is to be pushed than was fetched");
  }
  PREDUMP_RETURN_IF_ERROR(
      WriteCopying(out_fd, buffer_.bytes().subspan(done.value(), bytes.value())));
  pushed_ = done + bytes;
  return absl::OkStatus();
}

}  // namespace predump::pagemap
