#include "src/predump/migration.h"

#include <unistd.h>

#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "spdlog/spdlog.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/checkpoint/capture.h"
#include "src/pagemap/vdso_pages.h"
#include "src/predump/destination.h"
#include "src/predump/engine.h"
#include "src/predump/handover.h"
#include "src/predump/journal.h"
#include "src/predump/page_tracking.h"
#include "src/predump/round_inventory.h"
#include "src/predump/rounds.h"
#include "src/predump/survey.h"

namespace predump {
namespace {

// How often the process may be found holding something that cannot move (a file of /proc that it
// reads at that instant) before that is taken to be there for good.
constexpr int kMostBlockedFreezes = 5;
// After the first of them; twice as long after each further one.
constexpr absl::Duration kBlockedPause = absl::Milliseconds(10);

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
    PREDUMP_ASSIGN_OR_RETURN(kernel::ProcessHandle process, OpenTarget(options_));
    process_.emplace(std::move(process));
    std::optional<RoundInventory> inventory;
    if (!options_.images_directory.empty()) {
      PREDUMP_ASSIGN_OR_RETURN(inventory, RoundInventory::Open(options_.images_directory));
    }
    PREDUMP_ASSIGN_OR_RETURN(destination_,
                             Destination::Connect(options_, cancellation_, observer_));
    if (inventory.has_value() && !destination_->stores_images()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "--images-dir: the page server at ", options_.to.ToString(),
          " stores no images (predump page-server --images-dir), so that nothing would be left of "
          "the rounds"));
    }
    PREDUMP_ASSIGN_OR_RETURN(const bool accepted, Ask());
    if (!accepted) return absl::OkStatus();
    PREDUMP_RETURN_IF_ERROR(Move());
    // Of rounds that are all there.
    if (!inventory.has_value() || report_.status != MigrationStatus::kCompleted) {
      return absl::OkStatus();
    }
    return inventory->Write();
  }

  // False: refused, and the report says why.
  absl::StatusOr<bool> Ask() {
    PREDUMP_ASSIGN_OR_RETURN(checkpoint::Capturer capturer,
                             checkpoint::Capturer::Create(*process_, CaptureOptionsOf(options_)));
    capturer_.emplace(std::move(capturer));
    layout_.emplace(LayoutReader::Create(*process_, options_.use_bpf));
    PREDUMP_ASSIGN_OR_RETURN(ProcessWatch watch, ProcessWatch::Create(*process_, options_.use_bpf));
    watch_.emplace(std::move(watch));
    PREDUMP_ASSIGN_OR_RETURN(Surveyed surveyed, SurveyBetweenChildren());
    PREDUMP_RETURN_IF_ERROR(RefuseUnsettled(options_, *process_, report_.blockers));
    for (const proto::Blocker& blocker : surveyed.survey.blockers) {
      report_.blockers.push_back(Line(blocker));
    }
    PREDUMP_RETURN_IF_ERROR(destination_->Ask(
        {.process = *process_, .vmas = surveyed.vmas, .survey = std::move(surveyed.survey)},
        report_.blockers));
    if (report_.blockers.empty()) return true;
    report_.status = MigrationStatus::kRefused;
    report_.message = absl::StrCat("process ", options_.pid, " cannot be moved to ",
                                   options_.to.ToString(), "; it was not touched");
    return false;
  }

  // Children may be gone in a moment (system(3), posix_spawn(3)): they are waited for. Those that
  // stay are blockers.
  absl::StatusOr<Surveyed> SurveyBetweenChildren() {
    const base::Stopwatch waited;
    for (;;) {
      PREDUMP_ASSIGN_OR_RETURN(const bool childless,
                               watch_->WaitForNoChildren(options_.freeze_timeout - waited.Elapsed(),
                                                         destination_->wake_fd()));
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

  absl::Status Move() {
    PREDUMP_ASSIGN_OR_RETURN(const std::unique_ptr<PageSink> sink, destination_->OpenSink());
    // Before anything of ours lies in its padding.
    std::optional<pagemap::VdsoPages> vdso;
    if (destination_->stores_images()) {
      PREDUMP_ASSIGN_OR_RETURN(vdso, pagemap::VdsoPages::Copy(*process_));
    }
    PREDUMP_ASSIGN_OR_RETURN(PageTracking tracking,
                             PageTracking::Arm(*process_, options_, report_.stops));
    if (vdso.has_value()) tracking.Include(*vdso);
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
    PageSender sender(*sink, *tracking.source, limiter);
    Engine engine{.options = options_,
                  .cancellation = cancellation_,
                  .observer = observer_,
                  .report = report_,
                  .process = *process_,
                  .capturer = *capturer_,
                  .layout = *layout_,
                  .watch = *watch_,
                  .tracker = *tracking.tracker,
                  .source = *tracking.source,
                  .sink = *sink,
                  .limiter = limiter,
                  .sender = sender,
                  .stores_images = destination_->stores_images(),
                  .wake_fd = destination_->wake_fd()};
    const absl::Status status = RoundsAndHandover(engine);
    report_.transferred = sink->bytes_sent();
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
      if (!rounds.ok()) {
        const absl::Status status = OrCancelled(engine, rounds.status());
        const bool ours = absl::IsCancelled(status) || base::IsTargetExited(status);
        return ours ? status : OrCancelled(engine, destination_->Explain(status));
      }
      if (options_.rounds_only()) {
        report_.status = MigrationStatus::kCompleted;
        report_.message = absl::StrCat(
            rounds->rounds,
            engine.stores_images ? absl::StrCat(" rounds stored at ", options_.to.ToString())
                                 : " rounds sent",
            "; the process was left running");
        return absl::OkStatus();
      }
      if (rounds->decision.next == NextStep::kCancel) {
        return absl::CancelledError(rounds->decision.reason);
      }
      observer_.OnNote(absl::StrCat("freezing: ", rounds->decision.reason));
      PREDUMP_ASSIGN_OR_RETURN(const HandoverResult result,
                               destination_->HandOver(engine, rounds->rounds));
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
      // Frozen again at once it would hardly get on with what it is at.
      if (result.may_stay_so) {
        (void)cancellation_.AwaitRequest(kBlockedPause * (1 << (blocked_freezes - 1)));
      }
    }
  }

  const MigrationOptions& options_;
  Cancellation& cancellation_;
  MigrationObserver& observer_;
  MigrationReport& report_;
  std::optional<kernel::ProcessHandle> process_;
  std::unique_ptr<Destination> destination_;
  std::optional<checkpoint::Capturer> capturer_;
  std::optional<LayoutReader> layout_;
  std::optional<ProcessWatch> watch_;
};

class IgnoringObserver final : public MigrationObserver {
 public:
  void OnNote(absl::string_view) override {}
  void OnProgress(const RoundReport&) override {}
  void OnRound(const RoundReport&) override {}
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
  IgnoringObserver ignored;
  PREDUMP_ASSIGN_OR_RETURN(const std::unique_ptr<Destination> destination,
                           Destination::Connect(options, never, ignored));
  PREDUMP_RETURN_IF_ERROR(destination->Ask(
      {.process = process, .vmas = surveyed.vmas, .survey = std::move(survey), .check_only = true},
      lines));
  return lines;
}

}  // namespace predump
