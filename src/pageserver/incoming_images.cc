#include "src/pageserver/incoming_images.h"

#include <algorithm>
#include <vector>

#include "spdlog/spdlog.h"
#include "src/base/errors.h"
#include "src/images/state_images.h"

namespace predump::pageserver {
namespace {

using transport::DataKind;

constexpr uint32_t kPagesId = 1;

base::AddressRange RangeOf(const transport::WireExtent& extent) {
  return base::AddressRange::FromOrdered(extent.start, extent.start + extent.bytes);
}

absl::StatusOr<PagesFile> CreatePages(const images::PartialDirectory& directory) {
  return PagesFile::Create(directory.fd(), images::PagesName(kPagesId));
}

}  // namespace

absl::StatusOr<IncomingImages> IncomingImages::Start(const std::string& path, FateStore& fates,
                                                     uint64_t pid) {
  PREDUMP_ASSIGN_OR_RETURN(images::ImageStore store, images::ImageStore::Open(path));
  PREDUMP_ASSIGN_OR_RETURN(
      images::PartialDirectory directory,
      store.Begin(/*with_parent=*/false,
                  [&fates](const images::LockedStore& locked) { fates.SettleTheDead(locked); }));
  PREDUMP_ASSIGN_OR_RETURN(PagesFile pages, CreatePages(directory));
  return IncomingImages(std::move(store), std::move(directory), pid, std::move(pages));
}

absl::StatusOr<bool> IncomingImages::Advance(FrameReader& reader, uint64_t source_uptime_us) {
  while (!memory_complete_) {
    if (payload_awaited_) {
      PREDUMP_ASSIGN_OR_RETURN(const bool whole, pages_.TakeFrom(reader.socket()));
      payload_awaited_ = !whole;
      return whole;  // a frame's worth: others want to be heard
    }
    PREDUMP_ASSIGN_OR_RETURN(const std::optional<DataFrame> frame, reader.Next());
    if (!frame.has_value()) return false;
    if (!round_uptime_us_.has_value()) round_uptime_us_ = source_uptime_us;
    PREDUMP_RETURN_IF_ERROR(Take(*frame, reader));
  }
  return false;
}

absl::Status IncomingImages::Take(const DataFrame& frame, FrameReader& reader) {
  // Mapped anew, unmapped, dropped or overwritten: what was known there is not so any more.
  pagemap::ExtentSet changed;
  for (const transport::WireExtent& extent : frame.extents) {
    changed.Add(RangeOf(extent));
    if (frame.kind != DataKind::kPages) pages_.Forget(RangeOf(extent));
  }
  in_parents_.Subtract(changed);
  switch (frame.kind) {
    case DataKind::kPages:
      pages_.Announce(frame.extents);
      payload_awaited_ = true;
      return absl::OkStatus();
    case DataKind::kRoundEnd:
      return EndRound(frame.round, reader);
    case DataKind::kFinal:
      PREDUMP_RETURN_IF_ERROR(WritePagemap());
      memory_complete_ = true;
      return reader.Acknowledge(frame.round);
    default:
      return absl::OkStatus();
  }
}

absl::Status IncomingImages::WritePagemap() {
  PREDUMP_RETURN_IF_ERROR(pages_.PutInOrder());
  images::Pagemap pagemap;
  pagemap.pages_id = kPagesId;
  const pagemap::ExtentSet present = pages_.pages();
  for (const pagemap::Extent& extent : present.extents()) {
    pagemap.entries.push_back(
        {extent.start().value(), extent.pages().value(), images::kPagePresent});
  }
  for (const pagemap::Extent& extent : in_parents_.extents()) {
    pagemap.entries.push_back(
        {extent.start().value(), extent.pages().value(), images::kPageParent});
  }
  std::sort(pagemap.entries.begin(), pagemap.entries.end(),
            [](const auto& a, const auto& b) { return a.start < b.start; });
  return images::WritePagemap(directory_.fd(), pages_of(), pagemap);
}

absl::Status IncomingImages::EndRound(uint64_t round, FrameReader& reader) {
  PREDUMP_RETURN_IF_ERROR(WritePagemap());
  PREDUMP_RETURN_IF_ERROR(images::WriteRoundInventory(directory_.fd(), *round_uptime_us_));
  pagemap::ExtentSet published = pages_.pages();
  const std::string path = directory_.final_path();
  PREDUMP_ASSIGN_OR_RETURN(images::PartialDirectory next, store_.PublishAndBegin(directory_));
  ++rounds_published_;
  spdlog::info("round {} of process {} is in {}", round, pid_, path);
  directory_ = std::move(next);
  PREDUMP_ASSIGN_OR_RETURN(pages_, CreatePages(directory_));
  in_parents_.AddAll(published);
  round_uptime_us_.reset();
  return reader.Acknowledge(round);
}

}  // namespace predump::pageserver
