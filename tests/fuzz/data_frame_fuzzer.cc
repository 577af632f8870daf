// A data connection whose source sends anything, read as the landing reads it: no table is larger
// than announced, and the writer's and the landing's idea of a good frame are the same.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "src/restore/landing/frame_check.h"
#include "src/transport/data_check.h"

namespace {

using predump::restore::FrameFault;
using predump::transport::DataDefect;
using predump::transport::DataHeader;
using predump::transport::DataKind;
using predump::transport::MapRecord;
using predump::transport::WireExtent;

class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), left_(size) {}

  bool Take(void* out, size_t size) {
    if (size > left_) return false;
    std::memcpy(out, data_, size);
    Skip(size);
    return true;
  }
  void Skip(size_t size) {
    const size_t n = size < left_ ? size : left_;
    data_ += n;
    left_ -= n;
  }

 private:
  const uint8_t* data_;
  size_t left_;
};

bool Agree(DataDefect writer, FrameFault landing) {
  if ((writer == DataDefect::kNone) != (landing == FrameFault::kNone)) std::abort();
  return writer == DataDefect::kNone;
}

bool TakeMap(Input& input) {
  MapRecord record;
  if (!input.Take(&record, sizeof record)) return false;
  if (!Agree(predump::transport::CheckMapRecord(record), predump::restore::CheckMap(record))) {
    return false;
  }
  std::vector<char> path(record.path_bytes);
  if (path.size() > predump::transport::kMaxPathBytes) std::abort();
  if (path.empty()) return true;
  if (!input.Take(path.data(), path.size())) return false;
  return Agree(predump::transport::CheckPath(path.data(), record.path_bytes),
               predump::restore::CheckPath(path.data(), record.path_bytes));
}

bool TakeExtents(const DataHeader& header, Input& input) {
  const uint64_t table_bytes = predump::transport::TableBytes(header);
  if (table_bytes != uint64_t{predump::restore::ExtentCount(header)} * sizeof(WireExtent)) {
    std::abort();
  }
  std::vector<WireExtent> extents(table_bytes / sizeof(WireExtent));
  if (extents.size() > predump::transport::kMaxExtentsPerFrame) std::abort();
  if (extents.empty()) return true;
  if (!input.Take(extents.data(), table_bytes)) return false;
  if (!Agree(predump::transport::CheckExtents(header, extents.data()),
             predump::restore::CheckExtents(header, extents.data(), nullptr))) {
    return false;
  }
  // What passed can be acted on: inside user space and, all together, no more than announced.
  uint64_t total_bytes = 0;
  for (const WireExtent& extent : extents) {
    if (extent.start + extent.bytes > predump::transport::kUserSpaceEnd) std::abort();
    total_bytes += extent.bytes;
  }
  if (static_cast<DataKind>(header.kind) == DataKind::kPages) {
    if (total_bytes > predump::transport::kMaxPayloadBytes) std::abort();
    input.Skip(total_bytes);
  }
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  DataHeader header;
  while (input.Take(&header, sizeof header)) {
    if (!Agree(predump::transport::CheckHeader(header), predump::restore::CheckHeader(header))) {
      return 0;
    }
    const bool is_map = static_cast<DataKind>(header.kind) == DataKind::kMap;
    if (!(is_map ? TakeMap(input) : TakeExtents(header, input))) return 0;
  }
  return 0;
}
