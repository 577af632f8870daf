#include "src/pageserver/pages_file.h"

#include <algorithm>
#include <iterator>
#include <utility>
#include <vector>

#include "src/base/errors.h"

namespace predump::pageserver {
namespace {

// At most so much in one call, so that the control connection is heard in between.
constexpr uint64_t kBytesAtOnce = 4u << 20;

}  // namespace

absl::StatusOr<PagesFile> PagesFile::Create(int directory_fd, std::string name) {
  PREDUMP_ASSIGN_OR_RETURN(PayloadFile file, PayloadFile::Create(directory_fd, std::move(name)));
  return PagesFile(std::move(file));
}

void PagesFile::Announce(std::span<const transport::WireExtent> extents) {
  uint64_t offset = file_.size();
  for (const transport::WireExtent& extent : extents) {
    const uint64_t end = extent.start + extent.bytes;
    Forget(base::AddressRange::FromOrdered(extent.start, end));
    const auto next = runs_.lower_bound(extent.start);
    Run* before = next == runs_.begin() ? nullptr : &std::prev(next)->second;
    if (before != nullptr && before->end == extent.start &&
        before->offset + (before->end - std::prev(next)->first) == offset) {
      before->end = end;
    } else {
      runs_.emplace_hint(next, extent.start, Run{end, offset});
    }
    offset += extent.bytes;
  }
  awaited_ = offset - file_.size();
}

void PagesFile::Forget(base::AddressRange range) {
  const uint64_t start = range.start().value();
  const uint64_t end = range.end().value();
  auto run = runs_.lower_bound(start);
  if (run != runs_.begin() && std::prev(run)->second.end > start) --run;
  while (run != runs_.end() && run->first < end) {
    const auto [run_start, whole] = *run;
    run = runs_.erase(run);
    if (run_start < start) runs_.emplace(run_start, Run{start, whole.offset});
    if (whole.end > end) {
      runs_.emplace(end, Run{whole.end, whole.offset + (end - run_start)});
    }
  }
}

pagemap::ExtentSet PagesFile::pages() const {
  pagemap::ExtentSet pages;
  for (const auto& [start, run] : runs_) pages.Add(base::AddressRange::FromOrdered(start, run.end));
  return pages;
}

absl::StatusOr<bool> PagesFile::TakeFrom(int socket) {
  uint64_t taken = 0;
  while (awaited_ > 0 && taken < kBytesAtOnce) {
    PREDUMP_ASSIGN_OR_RETURN(const uint64_t got, file_.TakeFrom(socket, awaited_));
    PREDUMP_RETURN_IF_ERROR(file_.file_status());
    if (got == 0) return false;
    taken += got;
    awaited_ -= got;
  }
  return awaited_ == 0;
}

absl::Status PagesFile::PutInOrder() {
  std::vector<PayloadFile::Piece> pieces;
  pieces.reserve(runs_.size());
  uint64_t offset = 0;
  for (auto& [start, run] : runs_) {
    pieces.push_back({run.offset, run.end - start});
    run.offset = offset;
    offset += run.end - start;
  }
  return file_.Rearrange(pieces);
}

}  // namespace predump::pageserver
