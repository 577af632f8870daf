#include "src/predump/layout_reader.h"

#include <string>
#include <utility>
#include <vector>

#include "spdlog/spdlog.h"
#include "src/base/errors.h"
#include "src/pagemap/bpf_adapters.h"

namespace predump {

LayoutReader LayoutReader::Create(const kernel::ProcessHandle& process, bool use_bpf) {
  std::optional<kernel::VmaCapture> capture;
  if (use_bpf) {
    absl::StatusOr<kernel::VmaCapture> created = kernel::VmaCapture::Create(process.pid());
    if (created.ok()) {
      capture = *std::move(created);
    } else {
      spdlog::debug("mappings' flags come from smaps: {}", std::string(created.status().message()));
    }
  }
  return LayoutReader(process, std::move(capture));
}

absl::StatusOr<pagemap::VmaList> LayoutReader::ReadFlags() const {
  PREDUMP_ASSIGN_OR_RETURN(pagemap::VmaList vmas,
                           pagemap::VmaList::Read(*process_, /*with_flags=*/false));
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<kernel::VmaRecord> records, capture_->Read());
  pagemap::OverlayFlags(vmas, records);
  return vmas;
}

absl::StatusOr<pagemap::VmaList> LayoutReader::Read() {
  if (!capture_.has_value()) return pagemap::VmaList::Read(*process_, /*with_flags=*/true);
  PREDUMP_ASSIGN_OR_RETURN(pagemap::VmaList vmas, ReadFlags());
  PREDUMP_ASSIGN_OR_RETURN(guarded_, pagemap::RefuseGuardRegions(*process_, vmas));
  return vmas;
}

absl::StatusOr<pagemap::VmaList> LayoutReader::ReadFrozen() const {
  if (!capture_.has_value()) return pagemap::VmaList::Read(*process_, /*with_flags=*/true);
  PREDUMP_ASSIGN_OR_RETURN(pagemap::VmaList vmas, ReadFlags());
  for (const base::AddressRange& range : guarded_) pagemap::RefuseGuarded(vmas, range);
  return vmas;
}

}  // namespace predump
