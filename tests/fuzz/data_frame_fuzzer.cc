// A data connection whose source sends anything, read as the landing reads it: no table is larger
// than announced, and what passed the checks can be acted on.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "src/transport/data_check.h"

namespace {

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

bool TakeMap(Input& input) {
  MapRecord record;
  if (!input.Take(&record, sizeof record)) return false;
  if (predump::transport::CheckMapRecord(record) != DataDefect::kNone) return false;
  std::vector<char> path(record.path_bytes);
  if (path.size() > predump::transport::kMaxPathBytes) std::abort();
  if (path.empty()) return true;
  if (!input.Take(path.data(), path.size())) return false;
  if (predump::transport::CheckPath(path.data(), record.path_bytes) != DataDefect::kNone)
    return false;
  // The landing opens it as a string.
  if (path[0] != '/' || std::memchr(path.data(), 0, path.size()) != nullptr) std::abort();
  return true;
}

bool TakeExtents(const DataHeader& header, Input& input) {
  const uint64_t table_bytes = predump::transport::TableBytes(header);
  std::vector<WireExtent> extents(table_bytes / sizeof(WireExtent));
  if (extents.size() > predump::transport::kMaxExtentsPerFrame) std::abort();
  if (extents.empty()) return true;
  if (!input.Take(extents.data(), table_bytes)) return false;
  if (predump::transport::CheckExtents(header, extents.data()) != DataDefect::kNone) return false;
  // What passed can be acted on: one after the other, inside user space and, all together, no more
  // than announced.
  uint64_t total_bytes = 0;
  uint64_t end = 0;
  for (const WireExtent& extent : extents) {
    if (extent.bytes == 0 || extent.start < end) std::abort();
    end = extent.start + extent.bytes;
    if (end < extent.start || end > predump::transport::kUserSpaceEnd) std::abort();
    total_bytes += extent.bytes;
  }
  if (static_cast<DataKind>(header.kind) == DataKind::kPages) {
    if (total_bytes != header.arg) std::abort();
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
    if (predump::transport::CheckHeader(header) != DataDefect::kNone) return 0;
    const bool is_map = static_cast<DataKind>(header.kind) == DataKind::kMap;
    if (!(is_map ? TakeMap(input) : TakeExtents(header, input))) return 0;
  }
  return 0;
}
