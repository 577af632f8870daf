#include "src/restore/landing.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/securebits.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "src/base/errors.h"
#include "src/kernel/procfs.h"
#include "src/restore/birth.h"
#include "src/restore/builder.h"
#include "src/restore/landing_process.h"
#include "src/transport/data_check.h"

extern "C" const char predump_landing_image[];

namespace predump::restore {
namespace {

using internal::Baseline;
using internal::KernelMapping;
using internal::LandingProcess;

// landing_main.cc puts `syscall; int3` right before its entry point.
constexpr uint64_t kGateBeforeEntry = 3;

base::RemoteAddress ImageGate() {
  Elf64_Ehdr header;
  ::memcpy(&header, predump_landing_image, sizeof(header));
  return base::RemoteAddress(header.e_entry - kGateBeforeEntry);
}

absl::StatusOr<int64_t> Checked(absl::StatusOr<int64_t> result, absl::string_view what) {
  if (!result.ok()) return base::Annotate(result.status(), what);
  if (*result < 0 && *result > -4096) return base::ErrnoError(static_cast<int>(-*result), what);
  return result;
}

// Gathers everything the landing has into its home block: nothing else stays mapped.
absl::Status MoveIntoHome(LandingProcess& process) {
  const base::RemoteAddress gate = process.image_gate;
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<kernel::MapsEntry> maps,
                           kernel::ReadMaps(process.handle));
  PREDUMP_RETURN_IF_ERROR(
      Checked(process.GateCall(gate, SYS_mmap,
                               {kTrampoline, kTrampolineBytes, PROT_READ | PROT_WRITE | PROT_EXEC,
                                MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_NORESERVE, 2, 0}),
              "map the trampoline"));
  PREDUMP_RETURN_IF_ERROR(Checked(process.GateCall(gate, SYS_close, {2}), "close the trampoline"));
  uint64_t slot = kVdsoSlot;
  for (const kernel::MapsEntry& entry : maps) {
    const uint64_t start = entry.range.start().value();
    const uint64_t bytes = entry.range.size().value();
    if (start >= kHome && start < kHomeEnd) continue;
    if (entry.path == "[vsyscall]") continue;
    if (entry.path == "[vdso]" || entry.path.starts_with("[vvar")) {
      // Neighbours stay neighbours: the vDSO finds its data by distance.
      PREDUMP_RETURN_IF_ERROR(
          Checked(process.GateCall(gate, SYS_mremap,
                                   {start, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, slot}),
                  absl::StrCat("move ", entry.path, " of the landing")));
      process.kernel_mappings.push_back(KernelMapping{entry.path, slot, bytes});
      slot += bytes;
      if (slot > kVdsoSlot + kVdsoSlotBytes) {
        return absl::UnimplementedError("the vDSO of this kernel is larger than expected");
      }
    } else {
      PREDUMP_RETURN_IF_ERROR(Checked(process.GateCall(gate, SYS_munmap, {start, bytes}),
                                      absl::StrCat("unmap ", entry.path, " of the landing")));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Baseline> ReadBaseline(const LandingProcess& process, bool shell_job) {
  Baseline baseline;
  const pid_t pid = process.handle.pid();
  PREDUMP_ASSIGN_OR_RETURN(baseline.status, kernel::ReadStatus(process.handle));
  PREDUMP_ASSIGN_OR_RETURN(const kernel::StatFields stat, kernel::ReadStat(process.handle));
  baseline.nice = static_cast<int>(stat.nice);
  baseline.policy = stat.policy;
  PREDUMP_ASSIGN_OR_RETURN(baseline.personality, kernel::ReadPersonality(process.handle));
  PREDUMP_ASSIGN_OR_RETURN(baseline.oom_score_adj, kernel::ReadOomScoreAdj(process.handle));
  const auto login = kernel::ReadLoginUid(process.handle);
  if (login.ok()) baseline.login_uid = *login;
  for (int resource = 0; resource < static_cast<int>(RLIM_NLIMITS); ++resource) {
    if (::prlimit(pid, static_cast<__rlimit_resource>(resource), nullptr,
                  &baseline.limits[static_cast<size_t>(resource)]) != 0) {
      return base::ErrnoError(errno, "read the landing's limits");
    }
  }
  char mask[1024];
  const long bytes = ::syscall(SYS_sched_getaffinity, pid, sizeof(mask), mask);
  if (bytes < 0) return base::ErrnoError(errno, "read the landing's affinity");
  baseline.cpu_affinity.assign(mask, static_cast<size_t>(bytes));
  // Kept across fork and exec: what we have, the landing has.
  baseline.timer_slack_ns = static_cast<uint64_t>(::prctl(PR_GET_TIMERSLACK));
  baseline.secure_bits = static_cast<uint32_t>(::prctl(PR_GET_SECUREBITS)) & ~SECBIT_KEEP_CAPS;
  if (shell_job) {
    for (int fd = 0; fd < 3 && baseline.terminal.empty(); ++fd) {
      char name[256];
      if (::ttyname_r(fd, name, sizeof(name)) == 0) baseline.terminal = name;
    }
    if (baseline.terminal.empty()) baseline.terminal = "/dev/tty";
  }
  return baseline;
}

// Starts the landing's own program.
absl::Status RunProgram(LandingProcess& process) {
  LandingShared& shared = process.trampoline.shared();
  shared.data_socket = 0;
  shared.notify_fd = 1;
  PREDUMP_ASSIGN_OR_RETURN(user_regs_struct registers, process.leader().GetRegisters());
  registers.rip = process.image_gate.value() + kGateBeforeEntry;
  registers.orig_rax = ~0ull;
  registers.rdi = kTrampoline;
  PREDUMP_RETURN_IF_ERROR(process.leader().SetRegisters(registers));
  return process.leader().Continue();
}

std::string DescribeFault(const LandingShared& shared) {
  const auto error = [&] { return absl::StrCat(": ", ::strerror(shared.error_number)); };
  const std::string address = absl::StrFormat("%x", shared.address);
  const std::string path(shared.path, ::strnlen(shared.path, kLandingPathBytes));
  switch (static_cast<LandingFault>(shared.fault)) {
    case LandingFault::kNone:
      return "it was killed";
    case LandingFault::kEndOfStream:
      return "the data connection ended before the last round did";
    case LandingFault::kReceive:
      return absl::StrCat("receiving memory at ", address, error());
    case LandingFault::kFrame:
      return absl::StrCat(
          "bad data frame: ",
          transport::DescribeDefect(static_cast<transport::DataDefect>(shared.frame_defect)),
          " (address ", address, ")");
    case LandingFault::kOpen:
      return absl::StrCat("open ", path, " for the mapping at ", address, error());
    case LandingFault::kMap:
      return absl::StrCat("map ", path.empty() ? "memory" : path, " at ", address, error());
    case LandingFault::kUnmap:
      return absl::StrCat("unmap memory at ", address, error());
    case LandingFault::kDrop:
      return absl::StrCat("drop memory at ", address, error());
    case LandingFault::kStagingFull:
      return absl::StrCat("no place to stage memory for ", address);
    case LandingFault::kSend:
      return absl::StrCat("acknowledge a round", error());
  }
  return "unknown fault";
}

}  // namespace

absl::StatusOr<Landing> Landing::Start(LandingOptions options) {
  base::UniqueFd trampoline_fd;
  PREDUMP_ASSIGN_OR_RETURN(internal::Trampoline trampoline,
                           internal::Trampoline::Create(&trampoline_fd));
  int pipe_ends[2];
  if (::pipe2(pipe_ends, O_CLOEXEC) != 0) return base::ErrnoError(errno, "pipe2");
  base::UniqueFd notify_read(pipe_ends[0]);
  base::UniqueFd notify_write(pipe_ends[1]);

  internal::BirthOptions birth;
  birth.pid = options.pid;
  birth.new_pid_namespace = options.new_pid_namespace;
  birth.new_session = !options.shell_job;
  birth.monotonic_offset_ns = options.monotonic_offset_ns;
  birth.boottime_offset_ns = options.boottime_offset_ns;
  birth.cgroup_path = options.cgroup_path;
  birth.data_socket = options.data_socket.get();
  birth.notify_fd = notify_write.get();
  birth.trampoline_fd = trampoline_fd.get();
  PREDUMP_ASSIGN_OR_RETURN(internal::Newborn newborn, internal::GiveBirth(birth));
  auto handle = kernel::ProcessHandle::Open(newborn.landing.tid());
  if (!handle.ok()) {
    ::kill(newborn.landing.tid(), SIGKILL);  // ours and not reaped: the number is still its own
    return handle.status();
  }
  auto process =
      std::make_unique<LandingProcess>(options.pid, newborn.reaper, std::move(newborn.landing),
                                       *std::move(handle), std::move(trampoline));
  process->notify = std::move(notify_read);
  process->image_gate = ImageGate();
  process->monotonic_offset_ns = options.monotonic_offset_ns.value_or(0);
  PREDUMP_RETURN_IF_ERROR(MoveIntoHome(*process));
  PREDUMP_ASSIGN_OR_RETURN(process->baseline, ReadBaseline(*process, options.shell_job));
  PREDUMP_RETURN_IF_ERROR(RunProgram(*process));
  return Landing(std::move(process));
}

Landing::Landing(std::unique_ptr<LandingProcess> process) : process_(std::move(process)) {}
Landing::Landing(Landing&&) noexcept = default;
Landing& Landing::operator=(Landing&&) noexcept = default;
Landing::~Landing() = default;

pid_t Landing::outer_pid() const { return process_->handle.pid(); }

uint64_t Landing::received_bytes() const { return process_->trampoline.shared().payload_bytes; }

absl::Status Landing::WaitForFinal(absl::Time deadline, int extra_fd) {
  for (;;) {
    pollfd watched[2] = {{process_->notify.get(), POLLIN, 0}, {extra_fd, POLLIN | POLLRDHUP, 0}};
    int timeout_ms = -1;
    if (deadline != absl::InfiniteFuture()) {
      const absl::Duration left = std::max(deadline - absl::Now(), absl::ZeroDuration());
      timeout_ms = static_cast<int>(std::min<int64_t>(
          absl::ToInt64Milliseconds(left + absl::Milliseconds(1)), 1'000'000'000));
    }
    const int ready = ::poll(watched, 2, timeout_ms);
    if (ready < 0 && errno == EINTR) continue;
    if (ready < 0) return base::ErrnoError(errno, "poll for the landing");
    if (watched[0].revents != 0) break;
    if (watched[1].revents != 0) {
      return absl::CancelledError("another event came while memory was still expected");
    }
    if (ready == 0) {
      return absl::DeadlineExceededError("the last round did not arrive in time");
    }
  }
  char byte = 0;
  const ssize_t got = ::read(process_->notify.get(), &byte, 1);
  const LandingShared& shared = process_->trampoline.shared();
  if (got != 1) return absl::AbortedError(absl::StrCat("landing: ", DescribeFault(shared)));
  auto event = process_->leader().WaitForStop(absl::Seconds(10));
  if (!event.ok()) return base::Annotate(event.status(), "stop of the landing");
  if (event->kind != kernel::WaitEvent::Kind::kSignalStop || event->code != SIGSTOP) {
    return absl::InternalError(absl::StrCat("the landing stopped oddly: ", event->ToString()));
  }
  process_->reached_final = true;
  return absl::OkStatus();
}

absl::StatusOr<BuiltProcess> Landing::Build(const proto::ProcessState& state) && {
  std::unique_ptr<LandingProcess> process = std::move(process_);
  if (!process->reached_final) {
    return absl::FailedPreconditionError("the landing has not received all memory yet");
  }
  PREDUMP_RETURN_IF_ERROR(internal::Builder(*process, state).Build());
  return BuiltProcess(std::move(process));
}

}  // namespace predump::restore
