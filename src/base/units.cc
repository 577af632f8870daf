#include "src/base/units.h"

#include <unistd.h>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"

namespace predump::base {

uint64_t PageSize() {
  static const uint64_t size = static_cast<uint64_t>(::getpagesize());
  return size;
}

absl::StatusOr<AddressRange> AddressRange::Create(uint64_t start, uint64_t end) {
  if (start > end) {
    return absl::InvalidArgumentError(
        absl::StrFormat("range %x-%x ends before it starts", start, end));
  }
  return FromOrdered(start, end);
}

std::string AddressRange::ToString() const {
  return absl::StrFormat("%x-%x", start_.value(), end_.value());
}

}  // namespace predump::base
