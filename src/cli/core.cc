// `predump core`.
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "spdlog/spdlog.h"
#include "src/base/errors.h"
#include "src/base/unique_fd.h"
#include "src/cli/commands.h"
#include "src/cli/signals.h"
#include "src/cli/values.h"
#include "src/core/core_dump.h"
#include "src/predump/report.h"

namespace predump::cli {
namespace {

struct CoreText {
  core::CoreOptions options;
  pid_t thread = 0;
  std::string freeze_timeout = "2s";
  bool json = false;
};

// Further warnings are counted only, on a terminal; JSON has them all.
constexpr size_t kMostWarnings = 10;

// The word to give up, from the thread that waits for signals to the one that works.
class CancelWord {
 public:
  static absl::StatusOr<std::unique_ptr<CancelWord>> Create() {
    base::UniqueFd fd(::eventfd(0, EFD_CLOEXEC));
    if (!fd.valid()) return base::ErrnoError(errno, "eventfd");
    auto word = std::make_unique<CancelWord>();
    word->fd_ = std::move(fd);
    return word;
  }

  void Give(const std::string& reason) {
    absl::MutexLock lock(&mutex_);
    if (reason_.empty()) reason_ = reason;
    const uint64_t one = 1;
    if (::write(fd_.get(), &one, sizeof one) != sizeof one) ::abort();  // an eventfd takes a 1
  }
  int fd() const { return fd_.get(); }
  std::string reason() const {
    absl::MutexLock lock(&mutex_);
    return reason_;
  }

 private:
  base::UniqueFd fd_;
  mutable absl::Mutex mutex_;
  std::string reason_ ABSL_GUARDED_BY(mutex_);
};

struct Outcome {
  MigrationStatus status;
  std::string message;
};

Outcome OutcomeOf(const absl::Status& status, const CoreText& text, const core::CoreReport& report,
                  const std::string& cancel_reason) {
  const core::CoreOptions& options = text.options;
  const std::string what(status.message());
  if (status.ok()) {
    const std::string where = options.output == "-" ? "standard output" : options.output;
    return {MigrationStatus::kCompleted, absl::StrCat("core of process ", options.pid, " (",
                                                      report.command, ") written to ", where)};
  }
  if (absl::IsCancelled(status)) {
    return {MigrationStatus::kCancelled,
            absl::StrCat("cancelled by ", cancel_reason, "; no core was completed, process ",
                         options.pid, " runs on")};
  }
  // A system call's EINVAL is nobody's wrong use.
  if (absl::IsInvalidArgument(status) && !base::ErrnoOf(status).has_value())
    return {MigrationStatus::kUsage, what};
  if (base::IsTargetExited(status)) {
    return {MigrationStatus::kTargetGone, absl::StrCat(what, "; no core was completed")};
  }
  return {MigrationStatus::kFailed,
          absl::StrCat(what, "; no core was completed, process ", options.pid, " is as it was")};
}

void PrintOutcome(const Outcome& outcome, const core::CoreReport& report) {
  absl::FPrintF(stderr, "predump: %s: %s\n", std::string(StatusName(outcome.status)),
                outcome.message);
  for (size_t i = 0; i < std::min(report.warnings.size(), kMostWarnings); ++i) {
    absl::FPrintF(stderr, "  warning: %s\n", report.warnings[i]);
  }
  if (report.warnings.size() > kMostWarnings) {
    absl::FPrintF(stderr, "  and %d more warnings (--json has them all)\n",
                  report.warnings.size() - kMostWarnings);
  }
  if (outcome.status == MigrationStatus::kCompleted) {
    absl::FPrintF(
        stderr, "  %d threads, %d segments, %d pages (%s) taken by %s in %.1f ms; %s with holes\n",
        report.threads, report.segments, report.pages.value(),
        FormatBytes(static_cast<double>(base::ToBytes(report.pages).value())), report.source,
        absl::ToDoubleMilliseconds(report.total_time),
        FormatBytes(static_cast<double>(report.file_bytes)));
  }
  if (report.stopped > absl::ZeroDuration()) {
    absl::FPrintF(stderr, "  the process was stopped for %.3f ms%s; setup stop %.3f ms\n",
                  absl::ToDoubleMilliseconds(report.stopped),
                  report.consistent ? ", until its memory was taken" : "",
                  absl::ToDoubleMilliseconds(report.setup_stop));
  }
}

absl::StatusOr<core::CoreOptions> Parse(const CoreText& text) {
  core::CoreOptions options = text.options;
  if (options.pid <= 0) return absl::InvalidArgumentError("--pid takes a process id above 0");
  if (text.thread < 0) return absl::InvalidArgumentError("--thread takes a thread id above 0");
  if (text.thread > 0) options.first_thread = text.thread;
  PREDUMP_ASSIGN_OR_RETURN(options.freeze_timeout,
                           ParseDuration(text.freeze_timeout, absl::Seconds(1)));
  if (options.freeze_timeout <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError("--freeze-timeout must be above zero");
  }
  if (text.json && options.output == "-") {
    return absl::InvalidArgumentError(
        "--json and -o - both want standard output: name a file for the core");
  }
  return options;
}

int Finish(const CoreText& text, const Outcome& outcome, const core::CoreReport& report) {
  PrintOutcome(outcome, report);
  if (text.json) {
    absl::PrintF("%s\n", report.ToJson(StatusName(outcome.status), outcome.message));
  }
  return static_cast<int>(outcome.status);
}

int Run(const CoreText& text) {
  core::CoreReport report;
  absl::StatusOr<core::CoreOptions> options = Parse(text);
  if (!options.ok()) return Finish(text, OutcomeOf(options.status(), text, report, ""), report);
  // A reader that went away and a limit on file sizes are errors of the call that meets them.
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGXFSZ, SIG_IGN);
  const auto cancel = CancelWord::Create();
  if (!cancel.ok()) return Finish(text, OutcomeOf(cancel.status(), text, report, ""), report);
  const auto watcher =
      SignalWatcher::Start(absl::InfiniteDuration(),
                           [&word = **cancel](const std::string& reason) { word.Give(reason); });
  if (!watcher.ok()) return Finish(text, OutcomeOf(watcher.status(), text, report, ""), report);
  options->cancel_fd = (*cancel)->fd();
  const absl::Status status = core::DumpCore(*options, report);
  const Outcome outcome = OutcomeOf(status, text, report, (*cancel)->reason());
  if (!report.source.empty()) {
    spdlog::info("pages by {}: {}", report.source, report.source_reason);
  }
  spdlog::info("{}: {}", std::string(StatusName(outcome.status)), outcome.message);
  return Finish(text, outcome, report);
}

}  // namespace

void AddCore(CLI::App& app, const CommonOptions&, Command& command) {
  auto text = std::make_shared<CoreText>();
  CLI::App* core =
      app.add_subcommand("core", "Writes a core file of a process, which goes on running");
  core->add_option("--pid,-t", text->options.pid, "The process")->type_name("N")->required();
  core->add_option("--output,-o", text->options.output,
                   "The core file; a pipe, or - for standard output, takes it in one stream")
      ->type_name("FILE")
      ->required();
  core->add_flag("--consistent", text->options.consistent,
                 "Keep the process stopped until all of its memory is taken, so that it is of one "
                 "moment; without it, of some milliseconds");
  core->add_option("--source", text->options.source, "auto, process_vmsplice, helper or readv")
      ->check(CLI::IsMember({"auto", "process_vmsplice", "helper", "readv"}));
  core->add_option("--thread", text->thread,
                   "The thread that debuggers show first (the main thread)")
      ->type_name("TID");
  core->add_option("--freeze-timeout", text->freeze_timeout,
                   "Give up when a thread does not stop within this (2s)");
  core->add_flag("--json", text->json, "Print one JSON object on standard output at the end");
  core->callback([text, &command] { command = [text] { return Run(*text); }; });
}

}  // namespace predump::cli
