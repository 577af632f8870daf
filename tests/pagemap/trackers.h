// The trackers under test, made for a MemoryActor by name.
#ifndef PREDUMP_TESTS_PAGEMAP_TRACKERS_H_
#define PREDUMP_TESTS_PAGEMAP_TRACKERS_H_

#include <memory>
#include <string>

#include "src/pagemap/dirty_tracker.h"
#include "tests/pagemap/memory_actor.h"

namespace predump::pagemap {

// "uffd_wp", "soft_dirty" (by PAGEMAP_SCAN), "soft_dirty_entries" (by plain reads of pagemap),
// "full" or "full_entries".
std::unique_ptr<DirtyTracker> MakeTracker(const std::string& name, MemoryActor& actor);

// Empty where this kernel can serve it, else what is missing.
std::string WhyNoTracker(const std::string& name);

}  // namespace predump::pagemap

#endif  // PREDUMP_TESTS_PAGEMAP_TRACKERS_H_
