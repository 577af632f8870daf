// Stands in for the BPF programs in a build without them (PREDUMP_BPF=OFF).
#include <utility>

#include "absl/status/status.h"
#include "src/kernel/bpf/process_events.h"
#include "src/kernel/bpf/reads_in_flight.h"
#include "src/kernel/bpf/task_capture.h"
#include "src/kernel/bpf/vma_capture.h"

namespace predump::kernel {
namespace {

absl::Status Unavailable() { return absl::UnimplementedError("built without BPF"); }

}  // namespace

struct TaskCapture::Program {};
TaskCapture::TaskCapture(std::unique_ptr<Program> program) : program_(std::move(program)) {}
TaskCapture::TaskCapture(TaskCapture&&) noexcept = default;
TaskCapture& TaskCapture::operator=(TaskCapture&&) noexcept = default;
TaskCapture::~TaskCapture() = default;
absl::StatusOr<TaskCapture> TaskCapture::Create(pid_t) { return Unavailable(); }
absl::StatusOr<TaskSnapshot> TaskCapture::Read() { return Unavailable(); }

struct VmaCapture::Program {};
VmaCapture::VmaCapture(std::unique_ptr<Program> program) : program_(std::move(program)) {}
VmaCapture::VmaCapture(VmaCapture&&) noexcept = default;
VmaCapture& VmaCapture::operator=(VmaCapture&&) noexcept = default;
VmaCapture::~VmaCapture() = default;
absl::StatusOr<VmaCapture> VmaCapture::Create(pid_t) { return Unavailable(); }
absl::StatusOr<std::vector<VmaRecord>> VmaCapture::Read() { return Unavailable(); }

struct ProcessEvents::Program {};
ProcessEvents::ProcessEvents(std::unique_ptr<Program> program) : program_(std::move(program)) {}
ProcessEvents::ProcessEvents(ProcessEvents&&) noexcept = default;
ProcessEvents& ProcessEvents::operator=(ProcessEvents&&) noexcept = default;
ProcessEvents::~ProcessEvents() = default;
absl::StatusOr<ProcessEvents> ProcessEvents::Create(pid_t, uint32_t) { return Unavailable(); }
absl::StatusOr<std::vector<ProcessEvent>> ProcessEvents::Drain() { return Unavailable(); }
int ProcessEvents::poll_fd() const { return -1; }

struct ReadsInFlight::Program {};
ReadsInFlight::ReadsInFlight(std::unique_ptr<Program> program) : program_(std::move(program)) {}
ReadsInFlight::ReadsInFlight(ReadsInFlight&&) noexcept = default;
ReadsInFlight& ReadsInFlight::operator=(ReadsInFlight&&) noexcept = default;
ReadsInFlight::~ReadsInFlight() = default;
absl::StatusOr<ReadsInFlight> ReadsInFlight::Create(pid_t) { return Unavailable(); }
absl::Status ReadsInFlight::BeginReset() { return Unavailable(); }
absl::StatusOr<std::vector<InFlightRead>> ReadsInFlight::Snapshot() { return Unavailable(); }

}  // namespace predump::kernel
