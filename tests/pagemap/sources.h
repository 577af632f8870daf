// The page sources under test, made for a MemoryActor by name.
#ifndef PREDUMP_TESTS_PAGEMAP_SOURCES_H_
#define PREDUMP_TESTS_PAGEMAP_SOURCES_H_

#include <memory>
#include <string>

#include "src/pagemap/page_source.h"
#include "tests/pagemap/memory_actor.h"

namespace predump::pagemap {

// "readv" or "helper".
std::unique_ptr<PageSource> MakeSource(const std::string& name, MemoryActor& actor);

}  // namespace predump::pagemap

#endif  // PREDUMP_TESTS_PAGEMAP_SOURCES_H_
