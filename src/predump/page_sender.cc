#include "src/predump/page_sender.h"

#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "spdlog/spdlog.h"
#include "src/base/errors.h"
#include "src/pagemap/layout.h"
#include "src/transport/data_format.h"

namespace predump {
namespace {

using pagemap::Extent;
using transport::WireExtent;

WireExtent ToWire(const Extent& extent) { return {extent.start().value(), extent.size().value()}; }

std::vector<WireExtent> ToWire(std::span<const Extent> extents) {
  std::vector<WireExtent> wire;
  wire.reserve(extents.size());
  for (const Extent& extent : extents) wire.push_back(ToWire(extent));
  return wire;
}

uint32_t WireFlags(const pagemap::LayoutOp& op) {
  uint32_t flags = 0;
  if (op.shared) flags |= transport::kMapShared;
  if (!op.path.empty()) flags |= transport::kMapFile;
  if (op.grows_down) flags |= transport::kMapGrowsDown;
  if (op.huge_pages) flags |= transport::kMapHugePages;
  if (op.no_huge_pages) flags |= transport::kMapNoHugePages;
  if (op.no_reserve) flags |= transport::kMapNoReserve;
  if (op.writable_file) flags |= transport::kMapWritable;
  return flags;
}

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

absl::Status PageSender::SendLayout(const pagemap::VmaList& vmas) {
  for (const pagemap::LayoutOp& op : pagemap::DiffLayout(sent_layout_, vmas)) {
    spdlog::trace("{} {} {}", op.kind == pagemap::LayoutOp::Kind::kUnmap ? "unmap" : "map",
                  op.range.ToString(), op.path);
    if (op.kind == pagemap::LayoutOp::Kind::kUnmap) {
      const WireExtent extent = ToWire(op.range);
      PREDUMP_RETURN_IF_ERROR(data_.Unmap({&extent, 1}));
      continue;
    }
    transport::MapRecord record = {};
    record.start = op.range.start().value();
    record.bytes = op.range.size().value();
    record.file_offset = op.file_offset_bytes;
    record.prot = op.prot;
    record.flags = WireFlags(op);
    PREDUMP_RETURN_IF_ERROR(data_.Map(record, op.path));
  }
  sent_layout_ = vmas;
  return absl::OkStatus();
}

absl::StatusOr<base::PageCount> PageSender::SendDirty(const pagemap::DirtySet& dirty,
                                                      const Progress& progress) {
  if (!dirty.drop.empty()) PREDUMP_RETURN_IF_ERROR(data_.Drop(ToWire(dirty.drop.extents())));
  base::PageCount sent;
  Cursor cursor(dirty.pages);
  while (!cursor.done()) {
    PREDUMP_ASSIGN_OR_RETURN(const pagemap::FetchResult result,
                             source_.Fetch(cursor.Peek(PagesAtOnce())));
    if (result.consumed == base::PageCount(0)) {
      return absl::InternalError("the page source made no progress");
    }
    cursor.Advance(result.consumed);
    if (result.fetched.empty()) continue;
    base::ByteCount bytes;
    for (const Extent& extent : result.fetched) bytes += extent.size();
    if (spdlog::should_log(spdlog::level::trace)) {
      for (const Extent& extent : result.fetched) spdlog::trace("pages {}", extent.ToString());
    }
    PREDUMP_RETURN_IF_ERROR(limiter_.Acquire(bytes, data_.fd()));
    PREDUMP_RETURN_IF_ERROR(data_.PagesHeader(ToWire(result.fetched)));
    if (const absl::Status pushed = source_.PushTo(data_.fd()); !pushed.ok()) {
      return data_.Explain(pushed);
    }
    sent += base::ToPages(bytes);
    if (progress) progress(sent);
  }
  return sent;
}

}  // namespace predump
