#include "src/kernel/bpf/process_events.h"

#include <process_events.skel.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "src/base/errors.h"
#include "src/kernel/bpf/program.h"

namespace predump::kernel {
namespace {

int AppendEvent(void* context, void* data, size_t bytes) {
  auto& events = *static_cast<std::vector<ProcessEvent>*>(context);
  if (bytes < sizeof(EventRecord)) return -EBADMSG;
  ProcessEvent& event = events.emplace_back();
  std::memcpy(&event.record, data, sizeof(EventRecord));
  event.kind = static_cast<ProcessEventKind>(event.record.kind);
  return 0;
}

}  // namespace

struct ProcessEvents::Program {
  // The ring is destroyed before the maps it reads.
  std::unique_ptr<process_events_bpf, void (*)(process_events_bpf*)> skeleton;
  std::unique_ptr<ring_buffer, void (*)(ring_buffer*)> ring;
  uint64_t reported_lost;
  std::vector<ProcessEvent> events;
};

ProcessEvents::ProcessEvents(std::unique_ptr<Program> program) : program_(std::move(program)) {}
ProcessEvents::ProcessEvents(ProcessEvents&&) noexcept = default;
ProcessEvents& ProcessEvents::operator=(ProcessEvents&&) noexcept = default;
ProcessEvents::~ProcessEvents() = default;

absl::StatusOr<ProcessEvents> ProcessEvents::Create(pid_t tgid, uint32_t ring_bytes) {
  PREDUMP_ASSIGN_OR_RETURN(base::UniqueFd pidfd, internal::OpenPidfd(tgid));
  PREDUMP_ASSIGN_OR_RETURN(
      auto skeleton, internal::LoadSkeleton<process_events_bpf>(
                         process_events_bpf__open_opts, process_events_bpf__load,
                         process_events_bpf__destroy, [ring_bytes](process_events_bpf& events) {
                           return bpf_map__set_max_entries(events.maps.events, ring_bytes);
                         }));
  PREDUMP_RETURN_IF_ERROR(
      internal::Observe(skeleton->progs.find_process, tgid, skeleton->bss->observed_tgid));
  auto program = std::unique_ptr<Program>(
      new Program{std::move(skeleton), {nullptr, ring_buffer__free}, 0, {}});
  process_events_bpf& events = *program->skeleton;
  program->ring.reset(
      ring_buffer__new(bpf_map__fd(events.maps.events), AppendEvent, &program->events, nullptr));
  if (program->ring == nullptr) return base::ErrnoError(errno, "open BPF ring buffer");
  PREDUMP_RETURN_IF_ERROR(
      internal::AttachTracePoints({{events.progs.on_fork, &events.links.on_fork},
                                   {events.progs.on_exec, &events.links.on_exec},
                                   {events.progs.on_exit, &events.links.on_exit},
                                   {events.progs.on_signal, &events.links.on_signal}}));
  PREDUMP_RETURN_IF_ERROR(internal::CheckAlive(pidfd));
  return ProcessEvents(std::move(program));
}

absl::StatusOr<std::vector<ProcessEvent>> ProcessEvents::Drain() {
  program_->events.clear();
  const int consumed = ring_buffer__consume(program_->ring.get());
  if (consumed < 0) return base::ErrnoError(-consumed, "read BPF ring buffer");
  // Read after the ring: a loss counted here is newer than every event above, or it would have
  // been counted by the call before.
  const uint64_t lost = __atomic_load_n(&program_->skeleton->bss->lost_events, __ATOMIC_RELAXED);
  if (lost != program_->reported_lost) {
    ProcessEvent& event = program_->events.emplace_back();
    event.lost_events = lost - program_->reported_lost;
    program_->reported_lost = lost;
  }
  return std::exchange(program_->events, {});
}

int ProcessEvents::poll_fd() const { return ring_buffer__epoll_fd(program_->ring.get()); }

}  // namespace predump::kernel
