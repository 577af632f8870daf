// `predump resolve`.
#include <stdio.h>

#include <memory>
#include <string>

#include "absl/strings/str_format.h"
#include "src/base/errors.h"
#include "src/cli/commands.h"
#include "src/predump/report.h"
#include "src/predump/resolve.h"

namespace predump::cli {
namespace {

struct ResolveText {
  pid_t pid = 0;
  std::string to;
  std::string remote_predump;
  std::string remote_options;
  bool resume = false;
  bool end = false;
  std::string state_directory = "/run/predump";
};

int Run(const ResolveText& text) {
  ResolveOptions options;
  options.state_directory = text.state_directory;
  if (text.pid != 0) options.pid = text.pid;
  if (!text.to.empty()) options.to = text.to;
  if (!text.remote_predump.empty()) options.remote_predump = text.remote_predump;
  if (!text.remote_options.empty()) options.remote_options = text.remote_options;
  if (text.resume) options.decision = PersonsDecision::kResumeHere;
  if (text.end) options.decision = PersonsDecision::kEndHere;
  if (options.decision.has_value() && !options.pid.has_value()) {
    absl::FPrintF(stderr, "predump: --resume and --end need --pid N: decide for one process\n");
    return static_cast<int>(MigrationStatus::kUsage);
  }
  const auto resolution = Resolve(options);
  if (!resolution.ok()) {
    absl::FPrintF(stderr, "predump: %s\n", std::string(resolution.status().message()));
    return static_cast<int>(MigrationStatus::kFailed);
  }
  if (resolution->processes.empty() && resolution->unreadable.empty()) {
    absl::PrintF("nothing is parked here\n");
  }
  bool open = false;
  // Asked for one process that was found, the others are only mentioned.
  bool failed = !resolution->unreadable.empty() && !options.pid.has_value();
  for (const ResolvedProcess& process : resolution->processes) {
    absl::PrintF("process %d (%s) to %s: %s\n", process.pid, process.command, process.target,
                 process.message);
    open |= process.result == ResolvedProcess::Result::kUndecided;
    failed |= process.result == ResolvedProcess::Result::kFailed;
  }
  for (const std::string& line : resolution->unreadable) {
    absl::FPrintF(stderr, "predump: %s; left as it is\n", line);
  }
  // What may still settle by itself first: a script that asks again until then sees the rest last.
  if (open) return static_cast<int>(MigrationStatus::kParked);
  return static_cast<int>(failed ? MigrationStatus::kFailed : MigrationStatus::kCompleted);
}

}  // namespace

void AddResolve(CLI::App& app, const CommonOptions&, Command& command) {
  auto text = std::make_shared<ResolveText>();
  CLI::App* resolve = app.add_subcommand(
      "resolve",
      "Settles processes that a broken handover left parked: asks the target, then ends "
      "or resumes them");
  resolve->add_option("--pid,-t", text->pid, "Only this process")->type_name("N");
  resolve->add_option("--to", text->to, "Ask this page server instead of the one it went to")
      ->type_name("ENDPOINT");
  AddRemoteOptions(*resolve, text->remote_predump, text->remote_options);
  auto* resume = resolve->add_flag("--resume", text->resume,
                                   "You know that it does not run at the target: resume it here");
  resolve->add_flag("--end", text->end, "You know that it runs at the target: end the copy here")
      ->excludes(resume);
  resolve->add_option("--state-dir", text->state_directory, "Where the journal is kept")
      ->capture_default_str();
  resolve->callback([text, &command] { command = [text] { return Run(*text); }; });
}

}  // namespace predump::cli
