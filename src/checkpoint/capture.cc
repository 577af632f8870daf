#include "src/checkpoint/capture.h"

#include <fcntl.h>

#include <signal.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/checkpoint/attribute_check.h"
#include "src/checkpoint/blocker_list.h"
#include "src/checkpoint/credentials.h"
#include "src/checkpoint/file_capture.h"
#include "src/checkpoint/file_registry.h"
#include "src/checkpoint/memory_capture.h"
#include "src/checkpoint/plain_snapshot.h"
#include "src/checkpoint/process_capture.h"
#include "src/checkpoint/regular_file.h"
#include "src/checkpoint/socket_diag.h"
#include "src/checkpoint/thread_capture.h"
#include "src/kernel/bpf/task_capture.h"
#include "src/kernel/procfs.h"

namespace predump::checkpoint {
namespace {

// Pending signals as captured, to tell later ones from.
struct PendingSignals {
  std::vector<std::string> process;
  absl::flat_hash_map<uint32_t, std::vector<std::string>> threads;  // by own tid
  absl::flat_hash_map<pid_t, uint32_t> own_tids;                    // by tid of our namespace
};

std::vector<std::string> RawSignals(const criu::signal_queue_entry& queue) {
  std::vector<std::string> raw;
  for (const auto& entry : queue.signals()) raw.push_back(entry.siginfo());
  return raw;
}

// The alarm of setitimer(ITIMER_REAL): the kernel sends it without a sender.
bool IsIntervalAlarm(const siginfo_t& info) {
  return info.si_signo == SIGALRM && info.si_code == SI_KERNEL;
}

// Appends the signals of `now` that `before` does not account for, each as often as it is new.
void AppendNew(const std::vector<siginfo_t>& now, std::vector<std::string> before,
               std::optional<uint32_t> tid, bool alarm_travels,
               std::vector<proto::LateSignal>& late) {
  for (const siginfo_t& info : now) {
    std::string raw(reinterpret_cast<const char*>(&info), sizeof info);
    const auto known = std::find(before.begin(), before.end(), raw);
    if (known != before.end()) {
      before.erase(known);
      continue;
    }
    // The captured timer goes off at the target by itself; once is enough.
    if (alarm_travels && IsIntervalAlarm(info)) continue;
    proto::LateSignal& signal = late.emplace_back();
    if (tid.has_value()) signal.set_tid(*tid);
    signal.set_siginfo(std::move(raw));
  }
}

bool IsArmed(const criu::itimer_entry& timer) { return timer.vsec() != 0 || timer.vusec() != 0; }

// A file that the process may write has another size by the time the target looks; the real state
// brings the size that holds.
void ForgetSizesThatChange(proto::ProcessState& preview) {
  for (criu::file_entry& file : *preview.mutable_files()) {
    if (file.has_reg() && (file.reg().flags() & O_ACCMODE) != O_RDONLY) {
      file.mutable_reg()->clear_size();
    }
  }
}

}  // namespace

struct Capturer::Impl {
  const kernel::ProcessHandle* process;
  CaptureOptions options;
  absl::Status bpf_status;
  std::optional<kernel::TaskCapture> tasks;
  std::optional<PlainSnapshotReader> plain;  // where there are no tasks
  absl::Status diag_status;
  std::optional<SocketDiag> diag;
  LastingFacts facts;
  IdentityCache identities;
  FreshOptions fresh_options;  // asked for by the survey, so that the freeze knows them
  FlagMemory flags;
  struct Sleep {
    uint64_t since;  // the host's CLOCK_MONOTONIC
    uint64_t switches;
  };
  absl::flat_hash_map<pid_t, Sleep> sleeps;  // by tid of our namespace; with BPF only
  PendingSignals pending;
  bool alarm_armed = false;
  dev_t controlling_terminal = 0;

  // The first reading of a frozen process.
  CaptureInstant InstantOf(const kernel::TaskSnapshot& snapshot) const {
    return CaptureInstant(static_cast<int64_t>(snapshot.process.monotonic_now),
                          facts.our_clock_offsets, facts.clock_offsets);
  }
  // Of a stopped thread, if NoteSleepers saw the sleep that the stop ended.
  std::optional<uint64_t> AsleepSince(const kernel::ThreadRecord& stopped) const {
    if (plain.has_value()) {
      return plain->AsleepSince(stopped.tid.observer, stopped.voluntary_switches);
    }
    const auto noted = sleeps.find(stopped.tid.observer);
    // Being stopped is one more switch; any other is that of another sleep.
    const bool same =
        noted != sleeps.end() && stopped.voluntary_switches == noted->second.switches + 1;
    return same ? std::optional(noted->second.since) : std::nullopt;
  }
  // Through BPF, or else without.
  absl::StatusOr<kernel::TaskSnapshot> ReadRunning();
  absl::StatusOr<kernel::TaskSnapshot> ReadFrozen(kernel::FrozenProcess& frozen);
  absl::StatusOr<kernel::TaskSnapshot> ReadAgain(kernel::FrozenProcess& frozen,
                                                 const kernel::TaskSnapshot& before);
  // What Survey and Capture do alike: all but registers and signals.
  absl::Status FillCommon(const kernel::TaskSnapshot& snapshot, const pagemap::VmaList& vmas,
                          bool frozen, proto::ProcessState& state, BlockerList& blockers,
                          BlockerList& children);
  absl::Status FillThreads(const kernel::TaskSnapshot& snapshot, proto::ProcessState& state);
  absl::Status FillStopped(kernel::FrozenProcess& frozen, const kernel::TaskSnapshot& snapshot,
                           proto::ProcessState& state, BlockerList& blockers);
  // Timers and process-wide signals, so that an alarm that goes off between the two reads is in
  // exactly one of them.
  absl::Status FillTimersAndSignals(kernel::FrozenProcess& frozen, kernel::TaskSnapshot snapshot,
                                    criu::task_core_entry& task);
  void RememberPending(const kernel::TaskSnapshot& snapshot, const proto::ProcessState& state);
};

absl::StatusOr<kernel::TaskSnapshot> Capturer::Impl::ReadRunning() {
  return tasks.has_value() ? tasks->Read() : plain->ReadRunning();
}

absl::StatusOr<kernel::TaskSnapshot> Capturer::Impl::ReadFrozen(kernel::FrozenProcess& frozen) {
  return tasks.has_value() ? tasks->Read() : plain->ReadFrozen(frozen);
}

absl::StatusOr<kernel::TaskSnapshot> Capturer::Impl::ReadAgain(kernel::FrozenProcess& frozen,
                                                               const kernel::TaskSnapshot& before) {
  return tasks.has_value() ? tasks->Read() : plain->ReadAgain(frozen, before);
}

absl::Status Capturer::Impl::FillThreads(const kernel::TaskSnapshot& snapshot,
                                         proto::ProcessState& state) {
  CredentialsReader credentials(*process);
  for (const kernel::ThreadRecord& record : snapshot.threads) {
    const auto creds = credentials.Read(record.tid.observer, record);
    PREDUMP_RETURN_IF_ERROR(creds);
    PREDUMP_RETURN_IF_ERROR(
        FillThreadAttributes(record, record.tid.observer, **creds, *state.add_threads()));
  }
  FillTask(facts, snapshot, *state.mutable_threads(0)->mutable_core()->mutable_tc());
  return absl::OkStatus();
}

absl::Status Capturer::Impl::FillCommon(const kernel::TaskSnapshot& snapshot,
                                        const pagemap::VmaList& vmas, bool frozen,
                                        proto::ProcessState& state, BlockerList& blockers,
                                        BlockerList& children) {
  RefuseKernelState(snapshot, blockers);
  if (plain.has_value()) PREDUMP_RETURN_IF_ERROR(RefuseMemoryPolicies(*process, blockers));
  PREDUMP_RETURN_IF_ERROR(RefuseRelations(*process, snapshot, blockers, children));
  PREDUMP_ASSIGN_OR_RETURN(const kernel::StatusFields status, kernel::ReadStatus(*process));
  const CaptureInstant instant = InstantOf(snapshot);
  FillIdentity(instant, status, snapshot, options.tcp_close, state);
  PREDUMP_RETURN_IF_ERROR(FillThreads(snapshot, state));
  PREDUMP_RETURN_IF_ERROR(FillMemoryAddresses(*process, snapshot.process, state));
  FileRegistry files(state, identities);
  PREDUMP_RETURN_IF_ERROR(FillPaths(*process, snapshot.process.umask, files, state, blockers));
  FileContext context{.process = *process,
                      .options = options,
                      .diag = diag.has_value() ? &*diag : nullptr,
                      .diag_status = diag_status,
                      .instant = instant,
                      .frozen = frozen,
                      .controlling_terminal = controlling_terminal,
                      .files = files,
                      .state = state,
                      .blockers = blockers,
                      .fresh_options = fresh_options,
                      .descriptors = {},
                      .file_ids = {}};
  PREDUMP_RETURN_IF_ERROR(FillFiles(context));
  // Held longer, they would keep open what a running process closes.
  if (!frozen) {
    for (Descriptor& descriptor : context.descriptors) descriptor.duplicate = base::UniqueFd();
  }
  if (!frozen) PREDUMP_RETURN_IF_ERROR(RefuseSharedEnds(context));
  return FillMappings(*process, vmas, flags, !frozen, files, state, blockers);
}

absl::Status Capturer::Impl::FillTimersAndSignals(kernel::FrozenProcess& frozen,
                                                  kernel::TaskSnapshot snapshot,
                                                  criu::task_core_entry& task) {
  kernel::Tracee& leader = frozen.threads().front();
  const CaptureInstant instant = InstantOf(snapshot);
  while (true) {
    const uint64_t deadline = snapshot.process.real_timer_expires;
    const bool armed = snapshot.process.real_timer_armed != 0;
    task.clear_timers();
    FillTimers(snapshot.process, instant, *task.mutable_timers());
    task.clear_signals_s();
    task.mutable_signals_s();
    PREDUMP_ASSIGN_OR_RETURN(const auto signals,
                             leader.PeekPendingSignals(kernel::PendingQueue::kProcess));
    FillSignals(signals, *task.mutable_signals_s());
    // Taking any SIGALRM arms it, whoever sent it.
    if (std::any_of(signals.begin(), signals.end(),
                    [](const siginfo_t& info) { return info.si_signo == SIGALRM; })) {
      FillWaitingTimer(snapshot.process, *task.mutable_timers());
    }
    if (!armed) return absl::OkStatus();
    PREDUMP_ASSIGN_OR_RETURN(snapshot, ReadAgain(frozen, snapshot));
    if (snapshot.process.real_timer_armed != 0 && snapshot.process.real_timer_expires == deadline &&
        snapshot.process.monotonic_now < deadline) {
      return absl::OkStatus();
    }
  }
}

absl::Status Capturer::Impl::FillStopped(kernel::FrozenProcess& frozen,
                                         const kernel::TaskSnapshot& snapshot,
                                         proto::ProcessState& state, BlockerList& blockers) {
  absl::flat_hash_map<pid_t, const kernel::Tracee*> tracees;
  for (const kernel::Tracee& tracee : frozen.threads()) tracees.emplace(tracee.tid(), &tracee);
  const CaptureInstant instant = InstantOf(snapshot);
  for (size_t i = 0; i < snapshot.threads.size(); ++i) {
    const kernel::ThreadRecord& record = snapshot.threads[i];
    const auto tracee = tracees.find(record.tid.observer);
    if (tracee == tracees.end()) {
      return absl::FailedPreconditionError(
          absl::StrCat("thread ", record.tid.own, " is not among the frozen ones"));
    }
    CallContext context{.record = &record,
                        .instant = &instant,
                        .asleep_since_ns = AsleepSince(record),
                        .unblocked_signal_pending = HasUnblockedSignal(snapshot.process, record)};
    PREDUMP_RETURN_IF_ERROR(FillThreadExecution(
        *process, *tracee->second, context, *state.mutable_threads(static_cast<int>(i)), blockers));
  }
  if (!blockers.empty()) return absl::OkStatus();
  PREDUMP_RETURN_IF_ERROR(AbortRestartableSequences(*process, state));
  return FillTimersAndSignals(frozen, snapshot,
                              *state.mutable_threads(0)->mutable_core()->mutable_tc());
}

void Capturer::Impl::RememberPending(const kernel::TaskSnapshot& snapshot,
                                     const proto::ProcessState& state) {
  pending = {};
  for (const kernel::ThreadRecord& thread : snapshot.threads) {
    pending.own_tids.emplace(thread.tid.observer, static_cast<uint32_t>(thread.tid.own));
  }
  pending.process = RawSignals(state.threads(0).core().tc().signals_s());
  for (const auto& thread : state.threads()) {
    pending.threads.emplace(thread.tid(), RawSignals(thread.core().thread_core().signals_p()));
  }
  alarm_armed = IsArmed(state.threads(0).core().tc().timers().real());
}

Capturer::Capturer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Capturer::Capturer(Capturer&&) noexcept = default;
Capturer& Capturer::operator=(Capturer&&) noexcept = default;
Capturer::~Capturer() = default;

const absl::Status& Capturer::bpf_status() const { return impl_->bpf_status; }

absl::StatusOr<Capturer> Capturer::Create(const kernel::ProcessHandle& process,
                                          const CaptureOptions& options) {
  auto impl = std::make_unique<Impl>();
  impl->process = &process;
  impl->options = options;
  PREDUMP_ASSIGN_OR_RETURN(impl->facts, ReadLastingFacts(process));
  if (!options.use_bpf) {
    impl->bpf_status = absl::UnimplementedError("BPF was switched off");
  } else if (auto tasks = kernel::TaskCapture::Create(process.pid()); tasks.ok()) {
    impl->tasks.emplace(*std::move(tasks));
  } else if (base::IsTargetExited(tasks.status())) {
    return tasks.status();
  } else {
    impl->bpf_status = tasks.status();
  }
  if (!impl->tasks.has_value()) {
    PREDUMP_ASSIGN_OR_RETURN(impl->plain, PlainSnapshotReader::Create(process));
  }
  if (auto diag = SocketDiag::Open(process); diag.ok()) {
    impl->diag.emplace(*std::move(diag));
  } else {
    impl->diag_status = diag.status();
  }
  return Capturer(std::move(impl));
}

absl::StatusOr<checkpoint::Survey> Capturer::Survey(const pagemap::VmaList& vmas) {
  BlockerList blockers;
  BlockerList children;
  checkpoint::Survey survey;
  PREDUMP_ASSIGN_OR_RETURN(const auto status, kernel::ReadStatus(*impl_->process));
  PREDUMP_ASSIGN_OR_RETURN(const auto stat, kernel::ReadStat(*impl_->process));
  impl_->controlling_terminal = static_cast<dev_t>(stat.tty);
  PREDUMP_RETURN_IF_ERROR(
      RefuseSurroundings(*impl_->process, status, stat, impl_->options, blockers));
  impl_->flags.Remember(vmas);
  PREDUMP_ASSIGN_OR_RETURN(const auto snapshot, impl_->ReadRunning());
  PREDUMP_RETURN_IF_ERROR(
      impl_->FillCommon(snapshot, vmas, /*frozen=*/false, survey.preview, blockers, children));
  ForgetSizesThatChange(survey.preview);
  if (impl_->plain.has_value()) {
    // Not known before the freeze.
    survey.preview.mutable_threads(0)->mutable_core()->mutable_tc()->clear_sigactions();
  }
  survey.blockers = std::move(blockers).Take();
  survey.children = std::move(children).Take();
  return survey;
}

void Capturer::RememberSetup(const kernel::SetupResult& setup) {
  if (impl_->plain.has_value()) impl_->plain->RememberSetup(setup);
}

absl::Status Capturer::NoteSleepers() {
  if (impl_->plain.has_value()) return impl_->plain->NoteSleepers();
  impl_->sleeps.clear();
  PREDUMP_ASSIGN_OR_RETURN(const auto snapshot, impl_->tasks->Read());
  constexpr uint32_t kInterruptible = 1;  // TASK_INTERRUPTIBLE
  for (const kernel::ThreadRecord& thread : snapshot.threads) {
    if ((thread.state & kInterruptible) == 0) continue;
    const auto slept = kernel::OffCpuNanoseconds(thread);
    if (!slept.has_value()) continue;
    impl_->sleeps[thread.tid.observer] = {snapshot.process.monotonic_now - *slept,
                                          thread.voluntary_switches};
  }
  return absl::OkStatus();
}

absl::StatusOr<proto::ProcessState> Capturer::Capture(kernel::FrozenProcess& frozen,
                                                      const pagemap::VmaList& vmas) {
  BlockerList blockers;
  if (frozen.was_stopped()) blockers.Add("attribute state", "stopped by a signal");
  proto::ProcessState state;
  PREDUMP_ASSIGN_OR_RETURN(const auto snapshot, impl_->ReadFrozen(frozen));
  PREDUMP_RETURN_IF_ERROR(
      impl_->FillCommon(snapshot, vmas, /*frozen=*/true, state, blockers, blockers));
  PREDUMP_RETURN_IF_ERROR(impl_->FillStopped(frozen, snapshot, state, blockers));
  PREDUMP_RETURN_IF_ERROR(blockers.ToStatus());
  impl_->RememberPending(snapshot, state);
  return state;
}

absl::StatusOr<std::vector<proto::LateSignal>> Capturer::SignalsSince(
    kernel::FrozenProcess& frozen) {
  std::vector<proto::LateSignal> late;
  PREDUMP_ASSIGN_OR_RETURN(const auto shared, frozen.threads().front().PeekPendingSignals(
                                                  kernel::PendingQueue::kProcess));
  AppendNew(shared, impl_->pending.process, std::nullopt, impl_->alarm_armed, late);
  for (const kernel::Tracee& tracee : frozen.threads()) {
    const uint32_t tid = impl_->pending.own_tids[tracee.tid()];
    PREDUMP_ASSIGN_OR_RETURN(const auto signals,
                             tracee.PeekPendingSignals(kernel::PendingQueue::kThread));
    AppendNew(signals, impl_->pending.threads[tid], tid, false, late);
  }
  return late;
}

}  // namespace predump::checkpoint
