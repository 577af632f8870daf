// The extended register state of a thread: known values in, time passes, the same values out.
#ifndef PREDUMP_TESTS_WORKLOADS_VECTOR_STATE_H_
#define PREDUMP_TESTS_WORKLOADS_VECTOR_STATE_H_

#include <cstdint>

namespace predump::workloads {

// Fills every vector register the CPU has (AVX-512 with its masks, AVX2, or SSE2) and four x87
// registers from `seed`, spins `spins` turns with them live, and compares. Null if all survived,
// otherwise the kind of register that did not. `corrupt` changes one register on the way (for the
// test of this check).
const char* FindLostRegister(uint64_t seed, uint64_t spins, bool corrupt = false);

}  // namespace predump::workloads

#endif  // PREDUMP_TESTS_WORKLOADS_VECTOR_STATE_H_
