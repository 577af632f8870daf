#include "src/pageserver/criu_object.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "src/base/errors.h"
#include "src/images/image_constants.h"

namespace predump::pageserver {
namespace {

using images::kPageBytes;
using images::kPageParent;
using images::kPagePresent;
using images::Pagemap;
using images::PagemapEntry;
using images::PagesOf;

// A run and where its bytes are in the pages file.
struct Placed {
  PagemapEntry entry;
  uint64_t offset = 0;
};

uint64_t BytesOf(const PagemapEntry& entry) {
  return (entry.flags & kPagePresent) != 0 ? entry.pages * kPageBytes : 0;
}

void AppendJoined(const PagemapEntry& entry, std::vector<PagemapEntry>& to) {
  if (!to.empty() && to.back().end() == entry.start && to.back().flags == entry.flags) {
    to.back().pages += entry.pages;
  } else {
    to.push_back(entry);
  }
}

}  // namespace

std::optional<PagesOf> ParseObject(uint64_t object) {
  const uint64_t id = object >> 8;
  switch (object & 0xff) {
    case 1:
    case 10:
    case 11:
    case 16:
    case 17:
      if (id == 0 || id > std::numeric_limits<int32_t>::max()) return std::nullopt;
      return PagesOf{PagesOf::Kind::kTask, id};
    case 2:
    case 27:
    case 28:
    case 29:
    case 32:
    case 33:
    case 34:
      return PagesOf{PagesOf::Kind::kSharedMemory, id};
    default:
      return std::nullopt;
  }
}

absl::StatusOr<CriuObject> CriuObject::Create(int directory_fd, const PagesOf& of,
                                              uint32_t pages_id, std::optional<Pagemap> parent) {
  PREDUMP_ASSIGN_OR_RETURN(PayloadFile pages,
                           PayloadFile::Create(directory_fd, images::PagesName(pages_id)));
  return CriuObject(directory_fd, of, pages_id, std::move(parent), std::move(pages));
}

absl::Status CriuObject::Add(const PagemapEntry& entry) {
  PREDUMP_RETURN_IF_ERROR(
      base::Annotate(images::CheckPagemapEntry(entry, of_.kind), of_.PagemapName()));
  std::vector<PagemapEntry>& entries = pagemap_.entries;
  if (!entries.empty() && entry.start < entries.back().end()) ordered_ = false;
  AppendJoined(entry, entries);
  if (entries.size() <= kMostEntries) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat(of_.PagemapName(), " would have more than ", kMostEntries, " entries"));
}

absl::Status CriuObject::PutInOrder() {
  std::vector<Placed> placed;
  placed.reserve(pagemap_.entries.size());
  uint64_t offset = 0;
  for (const PagemapEntry& entry : pagemap_.entries) {
    placed.push_back({entry, offset});
    offset += BytesOf(entry);
  }
  std::sort(placed.begin(), placed.end(),
            [](const Placed& a, const Placed& b) { return a.entry.start < b.entry.start; });
  std::vector<PagemapEntry> entries;
  std::vector<PayloadFile::Piece> pieces;
  for (const Placed& run : placed) {
    if (!entries.empty() && run.entry.start < entries.back().end()) {
      return absl::DataLossError(absl::StrFormat("%s: the page at 0x%x came more than once",
                                                 of_.PagemapName(), run.entry.start));
    }
    if (BytesOf(run.entry) > 0) pieces.push_back({run.offset, BytesOf(run.entry)});
    AppendJoined(run.entry, entries);
  }
  pagemap_.entries = std::move(entries);
  return pages_.Rearrange(pieces);
}

absl::StatusOr<CriuObject::Counts> CriuObject::Finish() {
  if (!ordered_) PREDUMP_RETURN_IF_ERROR(PutInOrder());
  Counts counts;
  for (const PagemapEntry& entry : pagemap_.entries) {
    ((entry.flags & kPageParent) != 0 ? counts.in_parent : counts.present) += entry.pages;
  }
  const std::optional<uint64_t> missing =
      images::FirstNotInParent(pagemap_, parent_.has_value() ? *parent_ : Pagemap{});
  if (missing.has_value()) {
    return absl::DataLossError(absl::StrFormat(
        "%s: the page at 0x%x is said to be in the parent, and %s", of_.PagemapName(), *missing,
        has_parent() ? "it is not" : "there is no parent with that file"));
  }
  PREDUMP_RETURN_IF_ERROR(images::WritePagemap(directory_fd_, of_, pagemap_));
  PREDUMP_RETURN_IF_ERROR(pages_.Close());
  return counts;
}

}  // namespace predump::pageserver
