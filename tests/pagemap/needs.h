// Tests of what only some kernels have: they run there and say elsewhere what is missing.
#ifndef PREDUMP_TESTS_PAGEMAP_NEEDS_H_
#define PREDUMP_TESTS_PAGEMAP_NEEDS_H_

#include <initializer_list>
#include <string>

#include "src/kernel/capabilities.h"

namespace predump::pagemap {

// Empty where the kernel has all of them; else the first it lacks and how that was found.
std::string Lacking(std::initializer_list<kernel::Capability> needed);

}  // namespace predump::pagemap

#endif  // PREDUMP_TESTS_PAGEMAP_NEEDS_H_
