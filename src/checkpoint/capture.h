// Reads everything that makes up a process but the contents of its memory, as CRIU's messages.
//
//   Create   before anything is stopped: loads what costs milliseconds
//   Survey   while the process runs: what would be captured now, and what keeps it from moving
//   RememberSetup  after the setup stop, if there is one
//   NoteSleepers   right before the freeze
//   Capture  frozen; nothing in the process changes, and nothing is injected but without BPF
//   SignalsSince   frozen, just before Commit
//
// What moves and what does not: src/checkpoint/README.md. Whatever Capture meets that it does not
// know is refused there too, with the same words, since a process may open something between Survey
// and Capture. Not carried and not refused: queued UDP datagrams (UDP promises no delivery), cgroup
// membership, process group and session where no terminal is involved.
// Thread rule: one thread; Capture and SignalsSince in the one that froze the process.
#ifndef PREDUMP_CHECKPOINT_CAPTURE_H_
#define PREDUMP_CHECKPOINT_CAPTURE_H_

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/session.pb.h"
#include "proto/state.pb.h"
#include "src/kernel/freezer.h"
#include "src/kernel/process.h"
#include "src/kernel/setup_injection.h"
#include "src/pagemap/vma.h"

namespace predump::checkpoint {

struct CaptureOptions {
  bool use_bpf = true;
  bool tcp_close = false;  // established TCP connections become closed sockets at the target
  bool shell_job = false;  // the controlling terminal may stay behind
};

struct Survey {
  // Without registers, signals, contents of pipes and sockets (images::StateKind::kPreview).
  proto::ProcessState preview;
  std::vector<proto::Blocker> blockers;  // empty: it can move
  // Child processes: they keep it from moving for as long as they are there, so that it can once
  // they have ended.
  std::vector<proto::Blocker> children;
};

class Capturer {
 public:
  // `process` must outlive the result. Without BPF, or where it does not load, what only
  // the threads themselves can tell is left out of the survey, and they are asked once frozen
  // (src/checkpoint/plain_snapshot.h). Errors: TargetExited.
  static absl::StatusOr<Capturer> Create(const kernel::ProcessHandle& process,
                                         const CaptureOptions& options);

  Capturer(Capturer&&) noexcept;
  Capturer& operator=(Capturer&&) noexcept;
  ~Capturer();

  // `vmas` with VmFlags. What changes while it is read is reported as it was at one of the moments.
  // Errors: TargetExited.
  absl::StatusOr<checkpoint::Survey> Survey(const pagemap::VmaList& vmas);

  // Where there is no BPF: what the setup knows about the call it broke off, which afterwards does
  // not even tell its name.
  void RememberSetup(const kernel::SetupResult& setup);

  // Notes since when threads sleep: once stopped, a thread no longer tells, and the relative
  // timeouts of epoll_wait(2) and its like would begin anew. Microseconds; call it last before
  // FrozenProcess::Freeze. Leaving it out costs only that.
  absl::Status NoteSleepers();

  // The whole state (images::StateKind::kFull). `vmas` of the frozen process; without VmFlags those
  // of the last Survey are used for mappings that are still the same.
  // Errors: FailedPrecondition with all blockers found; TargetExited.
  absl::StatusOr<proto::ProcessState> Capture(kernel::FrozenProcess& frozen,
                                              const pagemap::VmaList& vmas);

  // Signals that are pending now and were not at Capture.
  absl::StatusOr<std::vector<proto::LateSignal>> SignalsSince(kernel::FrozenProcess& frozen);

  // Why the fallback is in use, OK where BPF is.
  const absl::Status& bpf_status() const;

 private:
  struct Impl;
  explicit Capturer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_CAPTURE_H_
