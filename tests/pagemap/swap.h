// Memory of a MemoryActor sent to swap, for tests on machines that have any.
#ifndef PREDUMP_TESTS_PAGEMAP_SWAP_H_
#define PREDUMP_TESTS_PAGEMAP_SWAP_H_

#include "src/base/units.h"
#include "tests/pagemap/memory_actor.h"

namespace predump::pagemap {

bool HasSwap();

// Pages out `range` and looks whether all of it is swapped out.
bool SwapOut(MemoryActor& actor, base::AddressRange range);

}  // namespace predump::pagemap

#endif  // PREDUMP_TESTS_PAGEMAP_SWAP_H_
