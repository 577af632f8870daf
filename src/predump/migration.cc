#include "src/predump/migration.h"

#include <errno.h>
#include <sys/random.h>

#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "spdlog/spdlog.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/checkpoint/capture.h"
#include "src/checkpoint/host_facts.h"
#include "src/kernel/process_identity.h"
#include "src/kernel/setup_injection.h"
#include "src/kernel/time_offsets.h"
#include "src/predump/engine.h"
#include "src/predump/handover.h"
#include "src/predump/journal.h"
#include "src/predump/page_tracking.h"
#include "src/predump/rounds.h"
#include "src/predump/survey.h"

namespace predump {
namespace {

constexpr size_t kSessionIdBytes = 16;
// How often the process may be found holding something that cannot move (a file of /proc that it
// reads at that instant) before that is taken to be there for good.
constexpr int kMostBlockedFreezes = 5;

absl::StatusOr<std::string> NewSessionId() {
  std::string id(kSessionIdBytes, '\0');
  if (::getrandom(id.data(), id.size(), 0) != static_cast<ssize_t>(id.size())) {
    return base::ErrnoError(errno, "getrandom");
  }
  return id;
}

std::string Line(const proto::Blocker& blocker) {
  std::string line = absl::StrCat(blocker.what(), ": ", blocker.reason());
  if (blocker.has_advice()) absl::StrAppend(&line, " (", blocker.advice(), ")");
  return line;
}

// A process whose earlier handover is open may run at that target, too, or be about to.
absl::Status RefuseUnsettled(const MigrationOptions& options, const kernel::ProcessHandle& process,
                             std::vector<std::string>& blockers) {
  PREDUMP_ASSIGN_OR_RETURN(
      const std::vector<std::string> reasons,
      Journal::FindUnsettled(absl::StrCat(options.state_directory, "/source"), process));
  blockers.insert(blockers.end(), reasons.begin(), reasons.end());
  return absl::OkStatus();
}

absl::StatusOr<kernel::ProcessHandle> OpenTarget(const MigrationOptions& options) {
  if (options.pid == ::getpid()) {
    return absl::InvalidArgumentError(
        "predump cannot move itself; name another process with --pid");
  }
  return kernel::ProcessHandle::Open(options.pid);
}

class MigrationRun {
 public:
  MigrationRun(const MigrationOptions& options, Cancellation& cancellation,
               MigrationObserver& observer, MigrationReport& report)
      : options_(options), cancellation_(cancellation), observer_(observer), report_(report) {}

  // The report's status and message are set on success and refusal; an error is for the caller to
  // turn into one.
  absl::Status Run() {
    const absl::Status status = TryRun();
    if (status.ok() || base::IsTargetExited(status) || !process_ || !process_->IsEnding()) {
      return status;
    }
    // What is read of a process in its last moments may look like anything.
    return base::TargetExited(
        absl::StrCat("process ", options_.pid, " has exited (", status.message(), ")"));
  }

 private:
  absl::Status TryRun() {
    PREDUMP_ASSIGN_OR_RETURN(session_id_, NewSessionId());
    PREDUMP_ASSIGN_OR_RETURN(kernel::ProcessHandle process, OpenTarget(options_));
    process_.emplace(std::move(process));
    PREDUMP_ASSIGN_OR_RETURN(const proto::HostFacts facts, checkpoint::ReadHostFacts());
    PREDUMP_ASSIGN_OR_RETURN(TargetLink link,
                             TargetLink::Connect(options_.link, facts, cancellation_));
    link_.emplace(std::move(link));
    PREDUMP_ASSIGN_OR_RETURN(const bool accepted, Ask(facts));
    if (!accepted) return absl::OkStatus();
    return Move();
  }

  // False: refused, and the report says why.
  absl::StatusOr<bool> Ask(const proto::HostFacts& facts) {
    PREDUMP_ASSIGN_OR_RETURN(checkpoint::Capturer capturer,
                             checkpoint::Capturer::Create(*process_, CaptureOptionsOf(options_)));
    capturer_.emplace(std::move(capturer));
    layout_.emplace(LayoutReader::Create(*process_, options_.use_bpf));
    PREDUMP_ASSIGN_OR_RETURN(ProcessWatch watch, ProcessWatch::Create(*process_, options_.use_bpf));
    watch_.emplace(std::move(watch));
    PREDUMP_ASSIGN_OR_RETURN(Surveyed surveyed, SurveyBetweenChildren());
    auto& [vmas, survey] = surveyed;
    PREDUMP_RETURN_IF_ERROR(RefuseUnsettled(options_, *process_, report_.blockers));
    for (const proto::Blocker& blocker : survey.blockers) report_.blockers.push_back(Line(blocker));
    for (const proto::Blocker& blocker : checkpoint::CompareHosts(facts, link_->server().host())) {
      report_.blockers.push_back(Line(blocker));
    }
    PREDUMP_ASSIGN_OR_RETURN(const proto::Begin begin, MakeBegin(std::move(survey), vmas));
    const absl::StatusOr<proto::BeginReply> reply = link_->Begin(begin);
    // Of a process with blockers the target may understand nothing; they stand all the same.
    if (!reply.ok() && report_.blockers.empty()) return reply.status();
    if (reply.ok()) {
      for (const proto::Blocker& blocker : reply->blockers()) {
        report_.blockers.push_back(absl::StrCat("target: ", Line(blocker)));
      }
    }
    if (report_.blockers.empty()) {
      data_token_ = reply->data_token();
      return true;
    }
    report_.status = MigrationStatus::kRefused;
    report_.message = absl::StrCat("process ", options_.pid, " cannot be moved to ",
                                   options_.link.address.ToString(), "; it was not touched");
    return false;
  }

  // Children may be gone in a moment (system(3), posix_spawn(3)): they are waited for. Those that
  // stay are blockers.
  absl::StatusOr<Surveyed> SurveyBetweenChildren() {
    const base::Stopwatch waited;
    for (;;) {
      PREDUMP_ASSIGN_OR_RETURN(const bool childless,
                               watch_->WaitForNoChildren(options_.freeze_timeout - waited.Elapsed(),
                                                         link_->control().fd()));
      if (cancellation_.requested()) return absl::CancelledError(cancellation_.reason());
      PREDUMP_ASSIGN_OR_RETURN(Surveyed surveyed, SurveyProcess(*layout_, *capturer_));
      checkpoint::Survey& survey = surveyed.survey;
      if (!childless) {
        for (proto::Blocker& child : survey.children) survey.blockers.push_back(std::move(child));
      } else if (!survey.children.empty() && !survey.blockers.empty() &&
                 waited.Elapsed() < options_.freeze_timeout) {
        continue;  // the one that just appeared may hold the other end of something
      }
      return surveyed;
    }
  }

  static checkpoint::CaptureOptions CaptureOptionsOf(const MigrationOptions& options) {
    checkpoint::CaptureOptions capture;
    capture.use_bpf = options.use_bpf;
    capture.tcp_close = options.tcp_close;
    capture.shell_job = options.shell_job;
    return capture;
  }

  absl::StatusOr<proto::Begin> MakeBegin(checkpoint::Survey survey, const pagemap::VmaList& vmas) {
    proto::Begin begin;
    begin.set_session_id(session_id_);
    begin.set_pid(survey.preview.pid());
    for (const proto::ThreadState& thread : survey.preview.threads()) begin.add_tids(thread.tid());
    base::ByteCount memory;
    for (const pagemap::Vma& vma : vmas.vmas()) {
      if (vma.is_private_memory()) memory += vma.range.size();
    }
    PREDUMP_ASSIGN_OR_RETURN(const base::ByteCount resident, ResidentMemory(*process_));
    begin.set_memory_bytes(std::min(memory, resident).value());
    *begin.mutable_preview() = std::move(survey.preview);
    begin.set_rounds_only(options_.rounds_only());
    begin.set_verify(options_.verify);
    begin.set_shell_job(options_.shell_job);
    begin.set_tcp_close(options_.tcp_close);
    // A refused process needs no data connection, so that the server shall not wait for one.
    begin.set_check_only(!report_.blockers.empty());
    PREDUMP_RETURN_IF_ERROR(SetClockOffsets(begin));
    return begin;
  }

  // The process's clocks must go on without a jump (back: never; forward: a round trip at most).
  absl::Status SetClockOffsets(proto::Begin& begin) {
    PREDUMP_ASSIGN_OR_RETURN(const kernel::TimeOffsets own,
                             kernel::ReadTimeOffsets(process_->pid()));
    PREDUMP_ASSIGN_OR_RETURN(const std::string boot_id, kernel::ReadBootId());
    if (link_->server().host().boot_id() == boot_id) {
      if (own.monotonic_ns == 0 && own.boottime_ns == 0) return absl::OkStatus();
      begin.set_monotonic_offset_ns(own.monotonic_ns);
      begin.set_boottime_offset_ns(own.boottime_ns);
      return absl::OkStatus();
    }
    PREDUMP_ASSIGN_OR_RETURN(const ClockOffsets hosts, link_->MeasureClocks());
    begin.set_monotonic_offset_ns(hosts.monotonic_ns + own.monotonic_ns);
    begin.set_boottime_offset_ns(hosts.boottime_ns + own.boottime_ns);
    return absl::OkStatus();
  }

  absl::Status Move() {
    PREDUMP_RETURN_IF_ERROR(link_->OpenData(data_token_));
    PREDUMP_ASSIGN_OR_RETURN(PageTracking tracking,
                             PageTracking::Arm(*process_, options_, report_.stops));
    report_.tracker = std::string(tracking.tracker->name());
    report_.source = std::string(tracking.source->name());
    report_.tracker_reason = tracking.tracker_reason;
    report_.source_reason = tracking.source_reason;
    report_.setup_stop = tracking.setup_result.stopped;
    capturer_->RememberSetup(tracking.setup_result);
    observer_.OnNote(
        absl::StrFormat("tracker %s (%s), source %s (%s); set up with one stop of %.3f ms",
                        report_.tracker, report_.tracker_reason, report_.source,
                        report_.source_reason, absl::ToDoubleMilliseconds(report_.setup_stop)));

    transport::BandwidthLimiter limiter(options_.bandwidth_per_second);
    PageSender sender(link_->data(), *tracking.source, limiter);
    Engine engine{options_,         cancellation_, observer_, report_,    *process_,
                  *capturer_,       *layout_,      *watch_,   *link_,     *tracking.tracker,
                  *tracking.source, limiter,       sender,    session_id_};
    const absl::Status status = RoundsAndHandover(engine);
    report_.transferred = link_->data().bytes_sent();
    NoteSourceInUse(*tracking.source);
    // Whatever came of it, nothing of ours stays in a process that lives on.
    if (report_.status != MigrationStatus::kCompleted || options_.leave_running) {
      tracking.TakeDown();
    }
    return status;
  }

  // Another one than in the beginning where somebody has killed the helper.
  void NoteSourceInUse(const pagemap::PageSource& source) {
    if (report_.source == source.name()) return;
    report_.source_reason = absl::StrCat("the ", report_.source, " was killed by somebody");
    report_.source = std::string(source.name());
    observer_.OnNote(absl::StrCat("source ", report_.source, ": ", report_.source_reason));
  }

  absl::Status RoundsAndHandover(Engine& engine) {
    RoundLoop loop(engine);
    int blocked_freezes = 0;
    for (;;) {
      const absl::StatusOr<RoundsResult> rounds = loop.Run();
      if (!rounds.ok()) return OrCancelled(engine, rounds.status());
      if (options_.rounds_only()) {
        report_.status = MigrationStatus::kCompleted;
        report_.message =
            absl::StrCat(rounds->rounds, " rounds sent; the process was left running");
        return absl::OkStatus();
      }
      if (rounds->decision.next == NextStep::kCancel) {
        return absl::CancelledError(rounds->decision.reason);
      }
      observer_.OnNote(absl::StrCat("freezing: ", rounds->decision.reason));
      PREDUMP_ASSIGN_OR_RETURN(const HandoverResult result, HandOver(engine, rounds->rounds));
      if (!result.try_again) {
        report_.status = result.status;
        report_.message = result.message;
        return absl::OkStatus();
      }
      if (result.may_stay_so && ++blocked_freezes == kMostBlockedFreezes) {
        return absl::FailedPreconditionError(result.message);
      }
      if (!loop.MayGoOn()) return absl::CancelledError(result.message);
      observer_.OnNote(absl::StrCat("another round: ", result.message));
    }
  }

  const MigrationOptions& options_;
  Cancellation& cancellation_;
  MigrationObserver& observer_;
  MigrationReport& report_;
  std::string session_id_;
  std::string data_token_;
  std::optional<kernel::ProcessHandle> process_;
  std::optional<TargetLink> link_;
  std::optional<checkpoint::Capturer> capturer_;
  std::optional<LayoutReader> layout_;
  std::optional<ProcessWatch> watch_;
};

void SetFailure(const absl::Status& status, const MigrationOptions& options,
                const Cancellation& cancellation, MigrationReport& report) {
  if (base::IsTargetExited(status)) {
    report.status = MigrationStatus::kTargetGone;
    report.message = std::string(status.message());
    return;
  }
  const bool cancelled = cancellation.requested() || absl::IsCancelled(status);
  report.status = cancelled ? MigrationStatus::kCancelled : MigrationStatus::kFailed;
  const std::string why =
      cancellation.requested() ? cancellation.reason() : std::string(status.message());
  report.message = absl::StrCat(cancelled ? "cancelled: " : "", why, "; process ", options.pid,
                                " runs on here, unchanged");
}

}  // namespace

absl::Status OrCancelled(const Engine& engine, const absl::Status& status) {
  if (!engine.cancellation.requested() || base::IsTargetExited(status)) return status;
  return absl::CancelledError(engine.cancellation.reason());
}

MigrationReport Migrate(const MigrationOptions& options, Cancellation& cancellation,
                        MigrationObserver& observer) {
  MigrationReport report;
  const base::Stopwatch watch;
  const absl::Status status = MigrationRun(options, cancellation, observer, report).Run();
  if (!status.ok()) SetFailure(status, options, cancellation, report);
  report.total_time = watch.Elapsed();
  return report;
}

absl::StatusOr<std::vector<std::string>> CheckProcess(const MigrationOptions& options,
                                                      bool ask_target) {
  PREDUMP_ASSIGN_OR_RETURN(const kernel::ProcessHandle process, OpenTarget(options));
  checkpoint::CaptureOptions capture;
  capture.use_bpf = options.use_bpf;
  capture.tcp_close = options.tcp_close;
  capture.shell_job = options.shell_job;
  PREDUMP_ASSIGN_OR_RETURN(checkpoint::Capturer capturer,
                           checkpoint::Capturer::Create(process, capture));
  LayoutReader layout = LayoutReader::Create(process, options.use_bpf);
  PREDUMP_ASSIGN_OR_RETURN(Surveyed surveyed, SurveyProcess(layout, capturer));
  checkpoint::Survey& survey = surveyed.survey;
  std::vector<std::string> lines;
  PREDUMP_RETURN_IF_ERROR(RefuseUnsettled(options, process, lines));
  for (const auto* list : {&survey.blockers, &survey.children}) {
    for (const proto::Blocker& blocker : *list) lines.push_back(Line(blocker));
  }
  if (!ask_target) return lines;

  Cancellation never;
  PREDUMP_ASSIGN_OR_RETURN(const proto::HostFacts facts, checkpoint::ReadHostFacts());
  PREDUMP_ASSIGN_OR_RETURN(TargetLink link, TargetLink::Connect(options.link, facts, never));
  for (const proto::Blocker& blocker : checkpoint::CompareHosts(facts, link.server().host())) {
    lines.push_back(Line(blocker));
  }
  proto::Begin begin;
  PREDUMP_ASSIGN_OR_RETURN(*begin.mutable_session_id(), NewSessionId());
  begin.set_pid(survey.preview.pid());
  for (const proto::ThreadState& thread : survey.preview.threads()) begin.add_tids(thread.tid());
  *begin.mutable_preview() = std::move(survey.preview);
  begin.set_check_only(true);
  begin.set_shell_job(options.shell_job);
  begin.set_tcp_close(options.tcp_close);
  const absl::StatusOr<proto::BeginReply> reply = link.Begin(begin);
  if (!reply.ok()) {
    if (lines.empty()) return reply.status();
    return lines;
  }
  for (const proto::Blocker& blocker : reply->blockers()) {
    lines.push_back(absl::StrCat("target: ", Line(blocker)));
  }
  return lines;
}

}  // namespace predump
