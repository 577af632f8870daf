#include "tests/pagemap/needs.h"

#include "absl/strings/str_cat.h"

namespace predump::pagemap {

std::string Lacking(std::initializer_list<kernel::Capability> needed) {
  for (const kernel::Capability capability : needed) {
    const auto probed = kernel::Probe(capability);
    if (!probed.ok()) return std::string(probed.status().message());
    if (!probed->available) {
      return absl::StrCat("this kernel lacks ", probed->name, ": ", probed->reason);
    }
  }
  return "";
}

}  // namespace predump::pagemap
