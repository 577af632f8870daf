// What happens to one process while nothing is attached to it: threads and children created,
// exec, exits, signals sent.
//
// Trace points (tp_btf, Linux 5.5) write into a ring buffer; nothing is lost silently.
//
// Thread rule: an object belongs to one thread at a time.
#ifndef PREDUMP_KERNEL_BPF_PROCESS_EVENTS_H_
#define PREDUMP_KERNEL_BPF_PROCESS_EVENTS_H_

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "src/kernel/bpf/records.h"

namespace predump::kernel {

enum class ProcessEventKind : uint32_t {
  kThreadCreated = kEventThreadCreated,
  kForked = kEventForked,  // a new process; its own events are not followed
  kExec = kEventExec,
  kThreadExited = kEventThreadExited,
  kProcessExited = kEventProcessExited,  // the last thread
  kSignal = kEventSignal,                // sent, whatever becomes of it: see EventRecord::result
  kLost,                                 // the ring was full
};

struct ProcessEvent {
  ProcessEventKind kind = ProcessEventKind::kLost;
  EventRecord record = {};   // all zero for kLost
  uint64_t lost_events = 0;  // for kLost: how many since the last Drain()
};

class ProcessEvents {
 public:
  static constexpr uint32_t kDefaultRingBytes = 256 * 1024;

  // `ring_bytes`: a power of two, at least a page. Other errors as TaskCapture::Create.
  static absl::StatusOr<ProcessEvents> Create(pid_t tgid, uint32_t ring_bytes = kDefaultRingBytes);

  ProcessEvents(ProcessEvents&&) noexcept;
  ProcessEvents& operator=(ProcessEvents&&) noexcept;
  ~ProcessEvents();

  // Events since the last call, oldest first, at the end one kLost if any were dropped. Never
  // waits.
  absl::StatusOr<std::vector<ProcessEvent>> Drain();

  // Readable (poll(2), epoll(7)) while Drain() would return events. A borrow.
  int poll_fd() const;

 private:
  struct Program;
  explicit ProcessEvents(std::unique_ptr<Program> program);
  std::unique_ptr<Program> program_;
};

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_BPF_PROCESS_EVENTS_H_
