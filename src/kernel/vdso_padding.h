// The unused end of a process's vDSO mapping: executable memory that is there in every process.
//
// The vDSO's ELF image ends somewhere inside its last page; the rest is zero. Programs placed there
// need no mapping of their own. Writes go through /proc/PID/mem and copy the page for this process
// only. Thread rule: values and free functions.
#ifndef PREDUMP_KERNEL_VDSO_PADDING_H_
#define PREDUMP_KERNEL_VDSO_PADDING_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/base/units.h"
#include "src/kernel/process.h"
#include "src/kernel/process_memory.h"
#include "src/kernel/procfs_maps.h"

namespace predump::kernel {

// What the first bytes of everything we place in a padding are, so that the remains of an engine
// that was killed are known as our own and may be overwritten.
inline constexpr char kPaddingMagic[8] = {'p', 'r', 'e', 'd', 'u', 'm', 'p', '1'};

// The end of the ELF image within `image` (a whole vDSO mapping), rounded up to 64 bytes.
// Errors: Unimplemented not a 64-bit image; DataLoss not an ELF image.
absl::StatusOr<size_t> VdsoImageEnd(std::span<const std::byte> image);

// The padding of the vDSO in `maps`.
// Errors: Unimplemented no vDSO or not a 64-bit one; FailedPrecondition the padding holds something
// that is not ours.
absl::StatusOr<base::AddressRange> FindVdsoPadding(const std::vector<MapsEntry>& maps,
                                                   const ProcessMemory& memory);

// Waits until no task of an engine that died runs a program in `padding`. Killed in the midst of a
// setup, an engine leaves a child of the process and the helper to come to their end by themselves,
// which they cannot over a program that is written or wiped meanwhile. Looks at other processes
// only where there are remains. FailedPrecondition: one is still there at `deadline_ns`
// (CLOCK_MONOTONIC).
absl::Status AwaitLeftTasks(const ProcessHandle& process, base::AddressRange padding,
                            const ProcessMemory& memory, int64_t deadline_ns);

// A page that no mapping touches and none grows to soon: the middle of the largest hole.
// ResourceExhausted where there is no hole of a megabyte.
absl::StatusOr<base::RemoteAddress> FindRemotePage(const std::vector<MapsEntry>& maps);

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_VDSO_PADDING_H_
