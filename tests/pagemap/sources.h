// The page sources under test, made for a MemoryActor by name.
#ifndef PREDUMP_TESTS_PAGEMAP_SOURCES_H_
#define PREDUMP_TESTS_PAGEMAP_SOURCES_H_

#include <memory>
#include <string>

#include "src/pagemap/page_source.h"
#include "tests/pagemap/memory_actor.h"

namespace predump::pagemap {

// "readv", "helper" or "process_vmsplice".
std::unique_ptr<PageSource> MakeSource(const std::string& name, MemoryActor& actor);

// Empty where this kernel can serve it, else what is missing.
std::string WhyNoSource(const std::string& name);

}  // namespace predump::pagemap

#endif  // PREDUMP_TESTS_PAGEMAP_SOURCES_H_
