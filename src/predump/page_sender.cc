#include "src/predump/page_sender.h"

#include <algorithm>
#include <vector>

#include "spdlog/spdlog.h"
#include "src/base/errors.h"

namespace predump {
namespace {

using pagemap::Extent;

// The extents of a set from a position on, as a source takes them: whole extents but for the first.
class Cursor {
 public:
  explicit Cursor(const pagemap::ExtentSet& set) : extents_(set.extents()) {}

  bool done() const { return next_ == extents_.size(); }

  // At most `pages` pages from here on.
  const std::vector<Extent>& Peek(base::PageCount pages) {
    window_.clear();
    uint64_t left = base::ToBytes(pages).value();
    uint64_t start = offset_ != 0 ? offset_ : (done() ? 0 : extents_[next_].start().value());
    for (size_t i = next_; i < extents_.size() && left > 0; ++i) {
      if (i != next_) start = extents_[i].start().value();
      const uint64_t end = std::min(extents_[i].end().value(), start + left);
      window_.push_back(Extent::FromOrdered(start, end));
      left -= end - start;
    }
    return window_;
  }

  void Advance(base::PageCount pages) {
    uint64_t left = base::ToBytes(pages).value();
    while (left > 0 && !done()) {
      const uint64_t start = offset_ != 0 ? offset_ : extents_[next_].start().value();
      const uint64_t size = extents_[next_].end().value() - start;
      if (left < size) {
        offset_ = start + left;
        return;
      }
      left -= size;
      offset_ = 0;
      ++next_;
    }
  }

 private:
  const std::vector<Extent>& extents_;
  size_t next_ = 0;
  uint64_t offset_ = 0;  // address reached within extents_[next_]; 0: its start
  std::vector<Extent> window_;
};

}  // namespace

base::PageCount PageSender::PagesAtOnce() const {
  const base::PageCount most = source_.max_pages();
  if (!limiter_.limited()) return most;
  return std::clamp(base::ToPages(limiter_.bucket()), base::PageCount(1), most);
}

absl::StatusOr<base::PageCount> PageSender::Send(const pagemap::VmaList& vmas,
                                                 const pagemap::DirtySet& dirty,
                                                 const Progress& progress) {
  PREDUMP_ASSIGN_OR_RETURN(const pagemap::ExtentSet pages, sink_.BeginRound(vmas, dirty));
  base::PageCount sent;
  base::PageCount left = pages.pages();
  Cursor cursor(pages);
  while (!cursor.done()) {
    PREDUMP_ASSIGN_OR_RETURN(const pagemap::FetchResult result,
                             source_.Fetch(cursor.Peek(PagesAtOnce())));
    if (result.consumed == base::PageCount(0)) {
      return absl::InternalError("the page source made no progress");
    }
    cursor.Advance(result.consumed);
    left -= std::min(left, result.consumed);
    if (result.fetched.empty()) continue;
    base::ByteCount bytes;
    for (const Extent& extent : result.fetched) bytes += extent.size();
    if (spdlog::should_log(spdlog::level::trace)) {
      for (const Extent& extent : result.fetched) spdlog::trace("pages {}", extent.ToString());
    }
    PREDUMP_RETURN_IF_ERROR(limiter_.Acquire(bytes, sink_.fd()));
    PREDUMP_RETURN_IF_ERROR(sink_.Pages(result.fetched, source_));
    sent += base::ToPages(bytes);
    if (progress) progress(sent, left);
  }
  return sent;
}

}  // namespace predump
