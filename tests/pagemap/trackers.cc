#include "tests/pagemap/trackers.h"

#include <utility>

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "src/pagemap/full_tracker.h"
#include "src/pagemap/soft_dirty_tracker.h"
#include "src/pagemap/uffd_wp_tracker.h"
#include "tests/pagemap/mirror.h"
#include "tests/pagemap/needs.h"

namespace predump::pagemap {
namespace {

template <typename Tracker>
std::unique_ptr<DirtyTracker> Checked(absl::StatusOr<std::unique_ptr<Tracker>> tracker) {
  EXPECT_TRUE(tracker.ok()) << tracker.status();
  return tracker.ok() ? *std::move(tracker) : nullptr;
}

}  // namespace

std::unique_ptr<DirtyTracker> MakeTracker(const std::string& name, MemoryActor& actor) {
  if (name == "uffd_wp")
    return Checked(UffdWpTracker::Create(actor.process(), UserfaultfdOf(actor)));
  const PageScanner::Method method =
      absl::EndsWith(name, "_entries") ? PageScanner::Method::kEntries : PageScanner::Method::kScan;
  if (absl::StartsWith(name, "soft_dirty")) {
    return Checked(SoftDirtyTracker::Create(actor.process(), method));
  }
  return Checked(FullTracker::Create(actor.process(), method));
}

std::string WhyNoTracker(const std::string& name) {
  return absl::StartsWith(name, "soft_dirty") ? Lacking({kernel::Capability::kSoftDirty}) : "";
}

}  // namespace predump::pagemap
