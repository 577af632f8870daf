// Buffers a device may be writing to behind every dirty tracker's back.
//
// An O_DIRECT read (and reads of FUSE, 9p, network files and character devices) may pin the pages
// of its buffer, and data lands in them without a page fault: written after a tracker's reset, it
// is never reported. Trace points at system call entry and exit (tp_btf, Linux 5.5) keep, per
// thread of one process, the read it is inside.
//
//   BeginReset();  tracker scan and reset;  Snapshot() -> ranges that stay dirty for the next round
//
// Invariant: Snapshot() returns every such read that overlapped any instant since BeginReset().
// Reads over before BeginReset() need nothing: their pages were reported when they were pinned. At
// a freeze all threads stand at system call boundaries, so no further Snapshot() is needed: the
// ranges of the last one are part of the last round.
//
// Thread rule: an object belongs to one thread at a time.
#ifndef PREDUMP_KERNEL_BPF_READS_IN_FLIGHT_H_
#define PREDUMP_KERNEL_BPF_READS_IN_FLIGHT_H_

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/base/units.h"
#include "src/kernel/bpf/records.h"

namespace predump::kernel {

struct InFlightRead {
  pid_t tid = 0;   // caller's pid namespace
  int64_t nr = 0;  // SYS_read, pread64, readv, preadv or preadv2
  int fd = -1;
  uint64_t entered_ns = 0;                  // CLOCK_MONOTONIC
  bool finished = false;                    // over since, but it overlapped the reset
  bool seeded = false;                      // was inside when the programs were attached
  std::vector<base::AddressRange> buffers;  // as given to the call: not page aligned
};

class ReadsInFlight {
 public:
  // Threads already inside a read are found from their saved registers, after the trace points
  // are in place. Errors as TaskCapture::Create.
  static absl::StatusOr<ReadsInFlight> Create(pid_t tgid);

  ReadsInFlight(ReadsInFlight&&) noexcept;
  ReadsInFlight& operator=(ReadsInFlight&&) noexcept;
  ~ReadsInFlight();

  // Call right before a tracker's reset: from now on finished reads are remembered too.
  absl::Status BeginReset();

  // Call right after the reset. Ends what BeginReset() began.
  // Errors: TargetExited; ResourceExhausted where a read could not be remembered or its buffers
  // not be told: then this reset has to be repeated (another BeginReset() makes the loss good), or
  // done under a freeze.
  absl::StatusOr<std::vector<InFlightRead>> Snapshot();

 private:
  struct Program;
  explicit ReadsInFlight(std::unique_ptr<Program> program);
  std::unique_ptr<Program> program_;
};

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_BPF_READS_IN_FLIGHT_H_
