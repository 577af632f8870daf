#include "src/kernel/bpf/task_capture.h"

#include <task_capture.skel.h>
#include <time.h>

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/kernel/bpf/program.h"

namespace predump::kernel {

struct TaskCapture::Program {
  std::unique_ptr<task_capture_bpf, void (*)(task_capture_bpf*)> skeleton;
  internal::Iterator tasks;
  base::UniqueFd pidfd;
  pid_t tgid;
  std::vector<char> bytes;
};

namespace {

// The BPF side has no clock but CLOCK_MONOTONIC and CLOCK_BOOTTIME, hence from here.
void FillNow(PosixTimerRecord& timer) {
  if (timer.known == 0) return;
  timespec now = {};
  if (clock_gettime(timer.base_clock_id, &now) != 0) return;
  constexpr uint64_t kNanosecondsPerSecond = 1'000'000'000;
  timer.now = static_cast<uint64_t>(now.tv_sec) * kNanosecondsPerSecond +
              static_cast<uint64_t>(now.tv_nsec);
}

template <typename Record>
bool CopyRecord(const char* from, uint32_t bytes, Record& to) {
  if (bytes != sizeof(Record)) return false;
  std::memcpy(&to, from, sizeof(Record));
  return true;
}

absl::StatusOr<TaskSnapshot> Parse(const std::vector<char>& bytes) {
  TaskSnapshot snapshot;
  size_t offset = 0;
  while (bytes.size() - offset >= sizeof(RecordHeader)) {
    RecordHeader header;
    std::memcpy(&header, bytes.data() + offset, sizeof(header));
    if (header.bytes > bytes.size() - offset) break;
    const char* record = bytes.data() + offset;
    bool good = false;
    switch (header.kind) {
      case kRecordProcess:
        good = CopyRecord(record, header.bytes, snapshot.process);
        break;
      case kRecordThread:
        good = CopyRecord(record, header.bytes, snapshot.threads.emplace_back());
        break;
      case kRecordPosixTimer:
        good = CopyRecord(record, header.bytes, snapshot.posix_timers.emplace_back());
        if (good) FillNow(snapshot.posix_timers.back());
        break;
      default:
        break;
    }
    if (!good) break;
    offset += header.bytes;
  }
  if (offset != bytes.size()) return absl::DataLossError("task iterator wrote a torn record");
  return snapshot;
}

}  // namespace

TaskCapture::TaskCapture(std::unique_ptr<Program> program) : program_(std::move(program)) {}
TaskCapture::TaskCapture(TaskCapture&&) noexcept = default;
TaskCapture& TaskCapture::operator=(TaskCapture&&) noexcept = default;
TaskCapture::~TaskCapture() = default;

absl::StatusOr<TaskCapture> TaskCapture::Create(pid_t tgid) {
  PREDUMP_ASSIGN_OR_RETURN(base::UniqueFd pidfd, internal::OpenPidfd(tgid));
  PREDUMP_ASSIGN_OR_RETURN(auto skeleton,
                           internal::LoadSkeleton<task_capture_bpf>(
                               task_capture_bpf__open_opts, task_capture_bpf__load,
                               task_capture_bpf__destroy, [](task_capture_bpf&) { return 0; }));
  PREDUMP_ASSIGN_OR_RETURN(internal::Iterator tasks,
                           internal::Iterator::Attach(skeleton->progs.capture_task, tgid));
  return TaskCapture(std::unique_ptr<Program>(
      new Program{std::move(skeleton), std::move(tasks), std::move(pidfd), tgid, {}}));
}

absl::StatusOr<TaskSnapshot> TaskCapture::Read() {
  // Makes the scheduler account for this thread up to now, without giving up the CPU: its
  // exec_start is the "now" that the other threads' are compared with.
  timespec unused = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &unused);
  PREDUMP_RETURN_IF_ERROR(program_->tasks.Read(program_->bytes));
  PREDUMP_RETURN_IF_ERROR(internal::CheckAlive(program_->pidfd));
  PREDUMP_ASSIGN_OR_RETURN(TaskSnapshot snapshot, Parse(program_->bytes));
  // Without a process record no thread has memory left: a zombie.
  if (snapshot.process.header.kind != kRecordProcess) {
    return base::TargetExited(absl::StrCat("process ", program_->tgid));
  }
  return snapshot;
}

}  // namespace predump::kernel
