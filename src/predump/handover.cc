#include "src/predump/handover.h"

#include <optional>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "spdlog/spdlog.h"
#include "src/base/atomic_file.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/kernel/freezer.h"
#include "src/kernel/process_identity.h"
#include "src/kernel/procfs.h"
#include "src/predump/journal.h"
#include "src/predump/memory_comparison.h"
#include "src/predump/tcp_sockets.h"
#include "src/transport/socket.h"

namespace predump {
namespace {

using transport::Deadline;

// How long an unanswered Commit is waited for before the target is asked anew, and how long it is
// then asked before the process is left parked.
constexpr absl::Duration kRunningTimeout = absl::Seconds(10);
constexpr absl::Duration kAskFateFor = absl::Seconds(20);
constexpr absl::Duration kAskFatePause = absl::Milliseconds(200);
// For images to reach a disk.
constexpr absl::Duration kStoredTimeout = absl::Minutes(2);

// Splits the downtime into named, consecutive parts.
class PhaseClock {
 public:
  explicit PhaseClock(MigrationReport& report) : report_(report) {}

  void Mark(std::string name) {
    const int64_t now_ns = base::MonotonicNanoseconds();
    report_.phases.emplace_back(std::move(name), absl::Nanoseconds(now_ns - last_ns_));
    last_ns_ = now_ns;
  }
  absl::Duration SinceStart() const {
    return absl::Nanoseconds(base::MonotonicNanoseconds() - start_ns_);
  }

 private:
  MigrationReport& report_;
  const int64_t start_ns_ = base::MonotonicNanoseconds();
  int64_t last_ns_ = start_ns_;
};

void AddPhases(const google::protobuf::RepeatedPtrField<proto::Phase>& phases,
               MigrationReport& report) {
  for (const proto::Phase& phase : phases) {
    report.phases.emplace_back(absl::StrCat("target: ", phase.name()),
                               absl::Nanoseconds(phase.nanoseconds()));
  }
}

class Handover {
 public:
  Handover(Engine& engine, TargetLink& link, std::string session_id, Journal journal,
           JournalEntry entry, uint64_t final_round)
      : engine_(engine),
        link_(link),
        session_id_(std::move(session_id)),
        journal_(std::move(journal)),
        entry_(std::move(entry)),
        final_round_(final_round) {}

  absl::StatusOr<HandoverResult> Run() {
    PREDUMP_RETURN_IF_ERROR(engine_.capturer.NoteSleepers());
    clock_.emplace(engine_.report);
    engine_.report.frozen_at = absl::Now();
    absl::StatusOr<kernel::FrozenProcess> freezing =
        kernel::FrozenProcess::Freeze(engine_.process, engine_.options.freeze_timeout);
    if (!freezing.ok()) {
      NoteStop("freeze not completed (some threads, at most): ", freezing.status().message());
      return freezing.status();
    }
    kernel::FrozenProcess frozen = *std::move(freezing);
    clock_->Mark("freeze");
    const absl::StatusOr<std::vector<pid_t>> children = engine_.watch.Children();
    if (!children.ok()) return GiveUp(std::move(frozen), children.status());
    if (!children->empty()) {
      return LetGo(std::move(frozen),
                   absl::StrCat("the process has made a child (", absl::StrJoin(*children, ", "),
                                ") just now"),
                   /*may_stay=*/false);
    }
    absl::Status ready = BringToReady(frozen);
    if (blocked_) return LetGo(std::move(frozen), ready.message(), /*may_stay=*/true);
    if (!ready.ok()) return GiveUp(std::move(frozen), ready);
    if (engine_.options.leave_running) return EndRehearsal(std::move(frozen));
    return Commit(std::move(frozen));
  }

 private:
  // The process goes on here, and has stood still since the freeze was asked for.
  void NoteStop(absl::string_view what, absl::string_view why) {
    engine_.report.stops.push_back({absl::StrCat(what, why), clock_->SinceStart()});
  }

  // While the target still takes rounds: it may be otherwise in a moment.
  absl::StatusOr<HandoverResult> LetGo(kernel::FrozenProcess frozen, absl::string_view why,
                                       bool may_stay) {
    PREDUMP_RETURN_IF_ERROR(std::move(frozen).Thaw());
    NoteStop("freeze called off: ", why);
    engine_.limiter = transport::BandwidthLimiter(engine_.options.bandwidth_per_second);
    PREDUMP_RETURN_IF_ERROR(
        transport::SetSendTimeout(link_.data().fd(), transport::DataWriter::kStallTimeout));
    engine_.report.phases.clear();
    engine_.report.frozen_at.reset();
    HandoverResult result;
    result.message = absl::StrCat(why, " (it stood still for ",
                                  absl::FormatDuration(engine_.report.stops.back().duration), ")");
    result.try_again = true;
    result.may_stay_so = may_stay;
    return result;
  }

  // Everything up to Ready, and the comparison of memory where asked for. Nothing is decided yet.
  absl::Status BringToReady(kernel::FrozenProcess& frozen) {
    PREDUMP_RETURN_IF_ERROR(engine_.watch.CheckSameProgram());
    PREDUMP_ASSIGN_OR_RETURN(const pagemap::VmaList vmas, engine_.layout.ReadFrozen());
    clock_->Mark("layout");
    PREDUMP_ASSIGN_OR_RETURN(const pagemap::DirtySet dirty, engine_.tracker.FinalScan(vmas));
    clock_->Mark("last scan");
    const absl::Status sent = SendLastRound(vmas, dirty);
    sending_failed_ = !sent.ok();
    PREDUMP_RETURN_IF_ERROR(sent);
    clock_->Mark("last pages");

    proto::Prepare prepare;
    absl::StatusOr<proto::ProcessState> state = engine_.capturer.Capture(frozen, vmas);
    // Something the process holds right now, a file of /proc it reads for one.
    blocked_ = absl::IsFailedPrecondition(state.status());
    PREDUMP_RETURN_IF_ERROR(state);
    *prepare.mutable_state() = *std::move(state);
    // Only now: after this the landing takes no further round.
    PREDUMP_RETURN_IF_ERROR(link_.data().Final(final_round_));
    tcp_descriptors_ = TcpDescriptors(prepare.state());
    prepare.set_final_round(final_round_);
    clock_->Mark("capture");
    const Deadline deadline = Deadline::After(engine_.options.freeze_timeout);
    PREDUMP_RETURN_IF_ERROR(link_.control().Send(proto::CONTROL_PREPARE, prepare, deadline));
    clock_->Mark("state sent");

    std::vector<proto::Verify> hashes;
    if (engine_.options.verify) {
      PREDUMP_ASSIGN_OR_RETURN(hashes, HashMemory(engine_.process, vmas, prepare.state()));
      clock_->Mark("hashing for --verify");
    }
    PREDUMP_ASSIGN_OR_RETURN(
        const proto::Ready ready,
        link_.control().Expect<proto::Ready>(
            proto::CONTROL_READY,
            engine_.options.verify ? Deadline::After(engine_.options.freeze_timeout) : deadline));
    clock_->Mark("ready");
    AddPhases(ready.phases(), engine_.report);
    if (engine_.options.verify) {
      PREDUMP_ASSIGN_OR_RETURN(engine_.report.pages_verified,
                               CompareAtTarget(link_.control(), hashes));
      engine_.report.verified = true;
      clock_->Mark("comparing for --verify");
    }
    return absl::OkStatus();
  }

  absl::Status SendLastRound(const pagemap::VmaList& vmas, const pagemap::DirtySet& dirty) {
    // Frozen, it waits for nobody longer than it may.
    PREDUMP_RETURN_IF_ERROR(
        transport::SetSendTimeout(link_.data().fd(), engine_.options.freeze_timeout));
    engine_.limiter.Lift();
    PREDUMP_ASSIGN_OR_RETURN(const base::PageCount pages,
                             engine_.sender.Send(vmas, dirty, nullptr));
    engine_.report.pages_sent += pages;
    return absl::OkStatus();
  }

  // Before Commit every failure ends here: the process runs on, as it was.
  absl::StatusOr<HandoverResult> GiveUp(kernel::FrozenProcess frozen, absl::Status why) {
    const absl::Status thawed = std::move(frozen).Thaw();
    NoteStop("freeze called off: ", OrCancelled(engine_, why).message());
    if (sending_failed_ && !engine_.cancellation.requested()) why = link_.Explain(why);
    proto::Cancel cancel;
    cancel.set_reason(std::string(why.message()));
    // The target notices the end of the connection too; this only tells it why.
    link_.control()
        .Send(proto::CONTROL_CANCEL, cancel, Deadline::After(absl::Seconds(1)))
        .IgnoreError();
    if (!thawed.ok() && !base::IsTargetExited(thawed)) {
      spdlog::error("thawing: {}", std::string(thawed.message()));
    }
    return OrCancelled(engine_, why);
  }

  absl::StatusOr<HandoverResult> EndRehearsal(kernel::FrozenProcess frozen) {
    PREDUMP_RETURN_IF_ERROR(std::move(frozen).Thaw());
    engine_.report.downtime = clock_->SinceStart();
    proto::Cancel cancel;
    cancel.set_reason("--leave-running: the process stays at the source");
    cancel.set_rehearsed(true);
    PREDUMP_RETURN_IF_ERROR(
        link_.control().Send(proto::CONTROL_CANCEL, cancel, Deadline::After(absl::Seconds(5))));
    if (!engine_.stores_images) {
      return HandoverResult{MigrationStatus::kCompleted,
                            "the target was ready to take it; it was left running here, as asked"};
    }
    // They count once the server says so; nothing stands still meanwhile.
    const absl::StatusOr<proto::Running> stored = link_.control().Expect<proto::Running>(
        proto::CONTROL_RUNNING, Deadline::After(kStoredTimeout));
    if (!stored.ok()) {
      return OrCancelled(engine_, base::Annotate(stored.status(), "its images were not stored"));
    }
    engine_.report.stored_in = stored->stored_in();
    return HandoverResult{MigrationStatus::kCompleted,
                          absl::StrCat(WhereItIs(), "; it was left running here, as asked")};
  }

  // What became of it, once it is out of our hands.
  std::string WhereItIs() const {
    if (!engine_.stores_images) return "it runs at the target";
    return absl::StrCat("its images are stored at ", engine_.options.to.ToString(), " in ",
                        engine_.report.stored_in);
  }

  absl::StatusOr<HandoverResult> Commit(kernel::FrozenProcess frozen) {
    proto::Commit commit;
    commit.set_session_id(session_id_);
    absl::StatusOr<std::vector<proto::LateSignal>> late = engine_.capturer.SignalsSince(frozen);
    if (!late.ok()) return GiveUp(std::move(frozen), late.status());
    for (proto::LateSignal& signal : *late) *commit.add_late_signals() = std::move(signal);
    if (!engine_.cancellation.EnterCommit())
      return GiveUp(std::move(frozen), absl::CancelledError(""));

    // The journal, then the stop that outlives us, then the word itself: killed after the first, we
    // leave a process that runs on and an entry that is void. The other way round it would be a
    // parked process that no record tells of.
    absl::Status status = journal_.Commit(entry_);
    clock_->Mark("late signals, journal");
    if (status.ok()) status = frozen.QueueStop();
    if (status.ok()) status = SourceStillThere();
    if (!status.ok()) return Return(std::move(frozen), status);
    clock_->Mark("stop queued");
    const absl::StatusOr<proto::Running> running = SendCommit(commit);
    if (running.ok()) {
      engine_.report.downtime = clock_->SinceStart();
      clock_->Mark("commit to running");
      AddPhases(running->phases(), engine_.report);
      return Complete(std::move(frozen), *running);
    }
    spdlog::warn("no answer to Commit ({}); asking what became of the process",
                 std::string(running.status().message()));
    return SettleByAsking(std::move(frozen), running.status());
  }

  // Any error leaves open whether the target runs the process.
  absl::StatusOr<proto::Running> SendCommit(const proto::Commit& commit) {
    const Deadline deadline = Deadline::After(kRunningTimeout);
    PREDUMP_RETURN_IF_ERROR(link_.control().Send(proto::CONTROL_COMMIT, commit, deadline));
    return link_.control().Expect<proto::Running>(proto::CONTROL_RUNNING, deadline);
  }

  absl::Status SourceStillThere() {
    PREDUMP_ASSIGN_OR_RETURN(const bool exited, engine_.process.HasExited());
    if (exited) {
      return base::TargetExited(absl::StrCat("process ", engine_.process.pid(), " was killed"));
    }
    return absl::OkStatus();
  }

  // `arrived`: a Running, or a Fate that says the same.
  template <typename Message>
  absl::StatusOr<HandoverResult> Complete(kernel::FrozenProcess frozen, const Message& arrived) {
    if (engine_.stores_images) {
      engine_.report.stored_in = arrived.stored_in();
    } else {
      engine_.report.restored_pid = static_cast<pid_t>(arrived.restored_pid());
    }
    ShutDownTcpSockets(engine_.process, tcp_descriptors_);
    // The helper shares the memory: ended first, so that ending the original frees it.
    if (const absl::Status finished = engine_.source.Finish(); !finished.ok()) {
      spdlog::warn("page source: {}", std::string(finished.message()));
    }
    const absl::Status killed = std::move(frozen).Kill();
    // Killed it is: a large one gives back its memory for as long as that takes.
    if (absl::IsDeadlineExceeded(killed)) {
      spdlog::warn("{}", std::string(killed.message()));
    } else if (!killed.ok() && !base::IsTargetExited(killed)) {
      return HandoverResult{
          MigrationStatus::kParked,
          absl::StrCat(WhereItIs(), ", but the parked copy here could not be ended (",
                       killed.message(), "); run `predump resolve`")};
    }
    link_.control()
        .Send(proto::CONTROL_DONE, proto::Done(), Deadline::After(absl::Seconds(5)))
        .IgnoreError();  // the server forgets the session by itself, later
    if (const absl::Status removed = journal_.Remove(entry_); !removed.ok()) {
      spdlog::warn("journal: {}", std::string(removed.message()));
    }
    return HandoverResult{MigrationStatus::kCompleted, WhereItIs()};
  }

  // The target never ran it and never will.
  absl::StatusOr<HandoverResult> Return(kernel::FrozenProcess frozen, const absl::Status& why) {
    const absl::Status thawed = std::move(frozen).SwallowStopAndThaw();
    NoteStop("freeze called off: ", why.message());
    if (!thawed.ok() && !base::IsTargetExited(thawed)) {
      return HandoverResult{MigrationStatus::kParked,
                            absl::StrCat("the process could not be resumed here (",
                                         thawed.message(), "); run `predump resolve`")};
    }
    if (const absl::Status removed = journal_.Remove(entry_); !removed.ok()) {
      spdlog::warn("journal: {}", std::string(removed.message()));
    }
    return why;
  }

  absl::StatusOr<HandoverResult> SettleByAsking(kernel::FrozenProcess frozen,
                                                const absl::Status& why) {
    const Deadline until = Deadline::After(kAskFateFor);
    absl::Status silence = why;
    while (!until.passed()) {
      absl::StatusOr<proto::Fate> fate = AskFate(link_.options(), proto::HostFacts(), session_id_,
                                                 {entry_.target_boot_id, entry_.target_store_id});
      if (fate.ok() && fate->outcome() == proto::Fate::RUNNING) {
        engine_.report.downtime = clock_->SinceStart();
        return Complete(std::move(frozen), *fate);
      }
      if (fate.ok() && fate->outcome() == proto::Fate::DESTROYED) {
        return Return(std::move(frozen),
                      base::Annotate(why, engine_.stores_images
                                              ? "the target does not have its images"
                                              : "the target lost the process before it ran"));
      }
      if (!fate.ok()) silence = fate.status();
      if (absl::IsFailedPrecondition(silence)) break;  // the host that knew is gone
      // The target is unreachable or still deciding: no event tells when that changes.
      absl::SleepFor(std::min(kAskFatePause, until.Remaining()));
    }
    // Detaching with the stop queued leaves it parked.
    const absl::Status parked = std::move(frozen).Thaw();
    return HandoverResult{
        MigrationStatus::kParked,
        absl::StrCat("the target does not say whether it ",
                     engine_.stores_images ? "has its images" : "runs there", " (",
                     silence.message(), "); it is parked here", parked.ok() ? "" : " (or gone)",
                     "; run `predump resolve --pid ", engine_.process.pid(),
                     "` when the target can be reached")};
  }

  Engine& engine_;
  TargetLink& link_;
  const std::string session_id_;
  Journal journal_;
  JournalEntry entry_;
  const uint64_t final_round_;
  std::vector<int> tcp_descriptors_;
  std::optional<PhaseClock> clock_;
  bool blocked_ = false;  // Capture met something that cannot move
  bool sending_failed_ = false;
};

absl::StatusOr<JournalEntry> MakeEntry(const Engine& engine, const TargetLink& link,
                                       const std::string& session_id) {
  JournalEntry entry;
  entry.session_id = session_id;
  PREDUMP_ASSIGN_OR_RETURN(entry.process, kernel::ProcessIdentity::Of(engine.process));
  PREDUMP_ASSIGN_OR_RETURN(entry.command, kernel::ReadComm(engine.process));
  entry.target = engine.options.to.ToString();
  if (engine.options.to.kind() == transport::Endpoint::Kind::kSsh) {
    entry.remote_predump = engine.options.server_command.remote_predump;
    entry.remote_options = engine.options.server_command.remote_options;
  }
  entry.target_boot_id = link.server().host().boot_id();
  entry.target_store_id = link.server().host().fate_store_id();
  PREDUMP_ASSIGN_OR_RETURN(const kernel::ProcessHandle self,
                           kernel::ProcessHandle::Open(::getpid()));
  PREDUMP_ASSIGN_OR_RETURN(entry.engine, kernel::ProcessIdentity::Of(self));
  return entry;
}

}  // namespace

absl::StatusOr<HandoverResult> HandOver(Engine& engine, TargetLink& link,
                                        const std::string& session_id, uint64_t final_round) {
  // All that can fail for want of a directory or a file fails before the freeze.
  PREDUMP_ASSIGN_OR_RETURN(Journal journal,
                           Journal::Open(absl::StrCat(engine.options.state_directory, "/source")));
  PREDUMP_ASSIGN_OR_RETURN(JournalEntry entry, MakeEntry(engine, link, session_id));
  PREDUMP_RETURN_IF_ERROR(journal.Prepare(entry));
  const absl::Cleanup discard = [journal, entry] { journal.Discard(entry); };
  return Handover(engine, link, session_id, std::move(journal), std::move(entry), final_round)
      .Run();
}

}  // namespace predump
