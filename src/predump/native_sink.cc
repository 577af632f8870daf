#include "src/predump/native_sink.h"

#include <vector>

#include "spdlog/spdlog.h"
#include "src/base/errors.h"
#include "src/pagemap/layout.h"
#include "src/transport/data_format.h"
#include "src/transport/socket.h"

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

}  // namespace

absl::StatusOr<pagemap::ExtentSet> NativeSink::BeginRound(const pagemap::VmaList& vmas,
                                                          const pagemap::DirtySet& dirty) {
  PREDUMP_RETURN_IF_ERROR(SendLayout(vmas));
  if (!dirty.drop.empty()) PREDUMP_RETURN_IF_ERROR(data_.Drop(ToWire(dirty.drop.extents())));
  return dirty.pages;
}

absl::Status NativeSink::SendLayout(const pagemap::VmaList& vmas) {
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

absl::Status NativeSink::Pages(std::span<const Extent> extents, pagemap::PageSource& source) {
  PREDUMP_RETURN_IF_ERROR(data_.PagesHeader(ToWire(extents)));
  if (const absl::Status pushed = source.PushTo(data_.fd()); !pushed.ok()) {
    return data_.Explain(pushed);
  }
  return absl::OkStatus();
}

absl::Status NativeSink::EndRound(uint64_t number, transport::Deadline deadline) {
  PREDUMP_RETURN_IF_ERROR(data_.EndRound(number));
  return data_.ReadAcknowledge(number, deadline);
}

absl::Duration NativeSink::round_trip() const { return transport::RoundTrip(control_fd_); }

}  // namespace predump
