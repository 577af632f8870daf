// `predump --pid N --to ENDPOINT`, the migration itself, and `predump check`.
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "spdlog/spdlog.h"
#include "src/base/errors.h"
#include "src/cli/commands.h"
#include "src/cli/progress.h"
#include "src/cli/signals.h"
#include "src/cli/values.h"
#include "src/kernel/capabilities.h"
#include "src/predump/migration.h"

namespace predump::cli {
namespace {

constexpr int kUsageExit = static_cast<int>(MigrationStatus::kUsage);
constexpr int kMostRounds = 1'000'000;

// The text of each option until it is parsed for good.
struct MigrateText {
  pid_t pid = 0;
  std::string to;
  std::string tracker = "auto";
  std::string source = "auto";
  std::string max_downtime = "300ms";
  int max_rounds = 30;
  std::string rounds;
  std::string timeout;
  std::string bandwidth;
  std::string freeze_timeout = "2s";
  std::string congestion;
  int criu_header = 0;
  std::string images_directory;
  std::string remote_predump;
  std::string remote_options;
  bool leave_running = false;
  bool verify = false;
  bool tcp_close = false;
  bool shell_job = false;
  bool no_bpf = false;
  bool json = false;
  std::string state_directory = "/run/predump";
};

// Of a migration and of a check alike.
void AddProcessOptions(CLI::App& app, MigrateText& text) {
  AddRemoteOptions(app, text.remote_predump, text.remote_options);
  app.add_flag("--tcp-close", text.tcp_close,
               "Established TCP connections become closed ones at the target");
  app.add_flag("--shell-job,-j", text.shell_job,
               "The process holds a terminal; at the target it gets the page server's");
  app.add_flag("--no-bpf", text.no_bpf, "Use procfs and ptrace only");
  app.add_option("--state-dir", text.state_directory, "Where the journal is kept")
      ->capture_default_str();
}

// What has a meaning for rounds alone, or for CRIU's page server alone.
absl::Status ParseForCriu(const MigrateText& text, MigrationOptions& options) {
  const bool to_criu = options.to.kind() == transport::Endpoint::Kind::kCriu;
  if (to_criu && !options.rounds_only()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--to ", text.to,
                     ": CRIU's page server takes memory, not processes: give --rounds K "
                     "--leave-running too, and let `criu dump --page-server` do the last step"));
  }
  if (options.rounds_only() && text.verify) {
    return absl::InvalidArgumentError(
        "--verify compares at the last step, which --rounds K --leave-running does not have");
  }
  if (options.rounds_only() && options.policy.on_limit == Outcome::kForce) {
    return absl::InvalidArgumentError(
        "--timeout N:force freezes, which --rounds K --leave-running never does");
  }
  if (text.criu_header != 0) {
    if (!to_criu) {
      return absl::InvalidArgumentError("--criu-header is for --to criu://HOST:PORT only");
    }
    options.criu_header = text.criu_header == 32 ? transport::page_server::HeaderSize::kNew
                                                 : transport::page_server::HeaderSize::kOld;
  }
  if (!text.images_directory.empty() && !options.rounds_only()) {
    return absl::InvalidArgumentError(
        "--images-dir is for --rounds K --leave-running only: it gets what a later `criu dump "
        "--prev-images-dir` needs on this host; images themselves are stored with --to file:DIR, "
        "or by `predump page-server --images-dir DIR`");
  }
  options.images_directory = text.images_directory;
  return absl::OkStatus();
}

absl::Status ParseRounds(const MigrateText& text, MigrationOptions& options) {
  if (text.rounds.empty()) return absl::OkStatus();
  if (text.rounds == "-") {
    options.round_requests = STDIN_FILENO;
    return absl::OkStatus();
  }
  int rounds = 0;
  if (!absl::SimpleAtoi(text.rounds, &rounds) || rounds < 1 || rounds > kMostRounds) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--rounds takes a number from 1 to ", kMostRounds, " or -, not \"", text.rounds, "\""));
  }
  options.policy.exact_rounds = rounds;
  return absl::OkStatus();
}

// What only one kind of target takes is not silently dropped for another.
absl::Status SetServerCommand(const MigrateText& text, MigrationOptions& options) {
  using Kind = transport::Endpoint::Kind;
  const Kind kind = options.to.kind();
  if (kind != Kind::kSsh && !(text.remote_predump.empty() && text.remote_options.empty())) {
    return absl::InvalidArgumentError(
        "--remote-predump and --remote-options go with --to ssh://HOST: another server is started "
        "by somebody else");
  }
  if ((kind == Kind::kSsh || kind == Kind::kFile) && !text.congestion.empty()) {
    return absl::InvalidArgumentError(
        "--congestion goes with --to HOST:PORT: no other connection is made by predump itself");
  }
  if (!text.remote_predump.empty()) options.server_command.remote_predump = text.remote_predump;
  options.server_command.remote_options = text.remote_options;
  options.server_command.state_directory = text.state_directory;
  return absl::OkStatus();
}

absl::StatusOr<MigrationOptions> Parse(const MigrateText& text, bool needs_target) {
  MigrationOptions options;
  if (text.pid == 0) return absl::InvalidArgumentError("--pid N is missing: the process to move");
  options.pid = text.pid;
  if (text.to.empty() && needs_target) {
    return absl::InvalidArgumentError(
        "--to is missing: ssh://HOST, HOST:PORT of a page server, or file:DIR");
  }
  if (!text.to.empty()) {
    PREDUMP_ASSIGN_OR_RETURN(options.to, transport::Endpoint::Parse(text.to));
  }
  PREDUMP_RETURN_IF_ERROR(SetServerCommand(text, options));
  options.socket.congestion = text.congestion;
  options.tracker = text.tracker;
  options.source = text.source;
  PREDUMP_ASSIGN_OR_RETURN(options.policy.max_downtime,
                           ParseDuration(text.max_downtime, absl::Milliseconds(1)));
  options.policy.max_rounds = text.max_rounds;
  PREDUMP_RETURN_IF_ERROR(ParseRounds(text, options));
  if (!text.timeout.empty()) {
    PREDUMP_ASSIGN_OR_RETURN(const TimeoutValue timeout, ParseTimeout(text.timeout));
    options.policy.timeout = timeout.after;
    options.policy.on_limit = timeout.outcome;
  }
  if (!text.bandwidth.empty()) {
    PREDUMP_ASSIGN_OR_RETURN(options.bandwidth_per_second, ParseByteRate(text.bandwidth));
  }
  PREDUMP_ASSIGN_OR_RETURN(options.freeze_timeout,
                           ParseDuration(text.freeze_timeout, absl::Seconds(1)));
  if (options.freeze_timeout <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError("--freeze-timeout must be above zero");
  }
  options.leave_running = text.leave_running;
  options.verify = text.verify;
  options.tcp_close = text.tcp_close;
  options.shell_job = text.shell_job;
  options.use_bpf = !text.no_bpf;
  options.state_directory = text.state_directory;
  PREDUMP_RETURN_IF_ERROR(ParseForCriu(text, options));
  return options;
}

int UsageError(const absl::Status& status) {
  absl::FPrintF(stderr, "predump: %s\n", std::string(status.message()));
  return kUsageExit;
}

// Rounds have a line of their own each: here what they come to.
void PrintStops(const std::vector<StopReport>& stops) {
  int rounds = 0;
  absl::Duration all;
  absl::Duration longest;
  for (const StopReport& stop : stops) {
    if (!absl::StartsWith(stop.what, "round ")) {
      absl::FPrintF(stderr, "  stopped %.3f ms: %s\n", absl::ToDoubleMilliseconds(stop.duration),
                    stop.what);
      continue;
    }
    ++rounds;
    all += stop.duration;
    longest = std::max(longest, stop.duration);
  }
  if (rounds == 0) return;
  absl::FPrintF(stderr, "  stopped %.3f ms: %d rounds, at most %.3f ms each\n",
                absl::ToDoubleMilliseconds(all), rounds, absl::ToDoubleMilliseconds(longest));
}

void PrintReport(const MigrationReport& report) {
  absl::FPrintF(stderr, "predump: %s: %s\n", std::string(StatusName(report.status)),
                report.message);
  for (const std::string& blocker : report.blockers) absl::FPrintF(stderr, "  %s\n", blocker);
  PrintStops(report.stops);
  if (report.status != MigrationStatus::kCompleted) return;
  absl::FPrintF(stderr, "  %d rounds, %d pages, %s sent in %.1f ms\n", report.rounds.size(),
                report.pages_sent.value(),
                FormatBytes(static_cast<double>(report.transferred.value())),
                absl::ToDoubleMilliseconds(report.total_time));
  if (report.verified) {
    absl::FPrintF(stderr, "  %d pages compared at both ends: the same\n",
                  report.pages_verified.value());
  }
  if (!report.downtime.has_value()) return;
  absl::FPrintF(stderr, "  downtime %.3f ms\n", absl::ToDoubleMilliseconds(*report.downtime));
  for (const auto& [name, duration] : report.phases) {
    absl::FPrintF(stderr, "    %-40s %8.3f ms\n", name, absl::ToDoubleMilliseconds(duration));
  }
}

int RunMigration(const MigrateText& text) {
  const absl::StatusOr<MigrationOptions> options = Parse(text, /*needs_target=*/true);
  if (!options.ok()) return UsageError(options.status());
  // splice(2) into a connection that the peer closed raises it; EPIPE says the same.
  ::signal(SIGPIPE, SIG_IGN);
  const bool terminal = ::isatty(STDERR_FILENO) == 1;
  Cancellation cancellation;
  ProgressDisplay display(terminal, options->round_requests.has_value());
  const absl::Duration limit = options->policy.on_limit == Outcome::kCancel
                                   ? options->policy.timeout
                                   : absl::InfiniteDuration();
  const auto watcher = SignalWatcher::Start(limit, [&](const std::string& reason) {
    if (!cancellation.Request(reason)) {
      spdlog::warn("{}: too late to cancel, the process is being handed over", reason);
    }
  });
  if (!watcher.ok()) {
    absl::FPrintF(stderr, "predump: %s\n", std::string(watcher.status().message()));
    return static_cast<int>(MigrationStatus::kFailed);
  }
  const MigrationReport report = Migrate(*options, cancellation, display);
  display.ClearLine();
  spdlog::info("{}: {}", std::string(StatusName(report.status)), report.message);
  PrintReport(report);
  if (text.json) absl::PrintF("%s\n", report.ToJson());
  (void)FlushOutput();  // whatever was printed, this is what became of the process
  return static_cast<int>(report.status);
}

int CheckKernel() {
  const auto results = kernel::ProbeAll();
  if (!results.ok()) {
    absl::FPrintF(stderr, "predump: %s\n", std::string(results.status().message()));
    return static_cast<int>(MigrationStatus::kFailed);
  }
  for (const kernel::CapabilityResult& result : *results) {
    absl::PrintF("%-4s %-24s since %-8s %s\n", result.available ? "yes" : "no", result.name,
                 result.since, result.purpose);
    if (!result.reason.empty()) absl::PrintF("     %s\n", result.reason);
  }
  return 0;
}

absl::StatusOr<MigrationOptions> ParseCheck(const MigrateText& text) {
  PREDUMP_ASSIGN_OR_RETURN(const transport::Endpoint to, text.to.empty()
                                                             ? transport::Endpoint()
                                                             : transport::Endpoint::Parse(text.to));
  if (to.kind() == transport::Endpoint::Kind::kCriu) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--to ", text.to, ": CRIU's page server answers no questions; leave --to away"));
  }
  return Parse(text, /*needs_target=*/false);
}

int RunCheck(const MigrateText& text) {
  if (text.pid == 0 && text.to.empty()) return CheckKernel();
  if (text.pid == 0) {
    return UsageError(absl::InvalidArgumentError("--to asks about a process: give --pid N too"));
  }
  const absl::StatusOr<MigrationOptions> options = ParseCheck(text);
  if (!options.ok()) return UsageError(options.status());
  const auto blockers = CheckProcess(*options, /*ask_target=*/!text.to.empty());
  if (!blockers.ok()) {
    absl::FPrintF(stderr, "predump: %s\n", std::string(blockers.status().message()));
    return base::IsTargetExited(blockers.status()) ? static_cast<int>(MigrationStatus::kTargetGone)
                                                   : static_cast<int>(MigrationStatus::kFailed);
  }
  if (blockers->empty()) {
    absl::PrintF("process %d can be moved%s\n", text.pid,
                 text.to.empty() ? "" : absl::StrCat(" to ", text.to));
    return 0;
  }
  absl::PrintF("process %d cannot be moved:\n", text.pid);
  for (const std::string& blocker : *blockers) absl::PrintF("  %s\n", blocker);
  return static_cast<int>(MigrationStatus::kRefused);
}

}  // namespace

void AddMigrate(CLI::App& app, const CommonOptions&, Command& command) {
  auto text = std::make_shared<MigrateText>();
  app.add_option("--pid,-t", text->pid, "The process to move")->type_name("N");
  app.add_option(
         "--to", text->to,
         "Where to: ssh://[USER@]HOST[:PORT], where predump starts its server; HOST:PORT, a page "
         "server; file:DIR, a store on this host; or criu://HOST:PORT, a page server of CRIU's, "
         "for rounds only")
      ->type_name("ENDPOINT");
  app.add_option("--max-downtime", text->max_downtime,
                 "Freeze only once the expected downtime is at most this (300ms; a bare number is "
                 "milliseconds)");
  app.add_option(
         "--max-rounds", text->max_rounds,
         "After so many rounds freeze if --max-downtime is met, else do what --timeout says")
      ->check(CLI::Range(1, kMostRounds))
      ->capture_default_str();
  app.add_option("--rounds", text->rounds,
                 "Exactly so many rounds; with --leave-running nothing but rounds. -: as the lines "
                 "on standard input say, `round` or `freeze`")
      ->type_name("K|-");
  app.add_option("--timeout", text->timeout,
                 "After so many seconds of rounds cancel, or freeze all the same")
      ->type_name("SECONDS[:cancel|force]");
  app.add_option("--bandwidth", text->bandwidth, "Send at most so many bytes a second in rounds")
      ->type_name("BYTES[K|M|G]");
  app.add_option("--freeze-timeout", text->freeze_timeout,
                 "Thaw when a thread does not stop, or the target is not ready, within this (2s)");
  app.add_option("--images-dir,-D", text->images_directory,
                 "With --rounds and --leave-running: write inventory.img there, as a later `criu "
                 "dump --prev-images-dir` wants it")
      ->type_name("DIR");
  app.add_option("--criu-header", text->criu_header,
                 "With criu://: bytes of a message's header there, 24 up to CRIU 4.1.1 (default), "
                 "32 from 4.2")
      ->check(CLI::IsMember({24, 32}));
  app.add_option("--congestion", text->congestion, "TCP congestion control to use")
      ->type_name("NAME");
  app.add_option("--tracker", text->tracker, "auto, uffd-wp, soft-dirty or full")
      ->check(CLI::IsMember({"auto", "uffd-wp", "soft-dirty", "full"}));
  app.add_option("--source", text->source, "auto, process_vmsplice, helper or readv")
      ->check(CLI::IsMember({"auto", "process_vmsplice", "helper", "readv"}));
  app.add_flag("--leave-running,-R", text->leave_running,
               "Do everything but the last step: the process stays here");
  app.add_flag("--verify", text->verify, "Compare every page at both ends before handing over");
  AddProcessOptions(app, *text);
  app.add_flag("--json", text->json, "Print one JSON object on standard output at the end");
  app.callback([&app, text, &command] {
    if (!app.get_subcommands().empty()) return;
    if (app.count("--pid") == 0 && app.count("--to") == 0) return;
    command = [text] { return RunMigration(*text); };
  });
}

void AddCheck(CLI::App& app, const CommonOptions&, Command& command) {
  auto text = std::make_shared<MigrateText>();
  CLI::App* check = app.add_subcommand(
      "check", "Says what this kernel can do, or whether a process can be moved; touches nothing");
  check->add_option("--pid,-t", text->pid, "Look at this process")->type_name("N");
  check->add_option("--to", text->to, "Ask this page server too")->type_name("ENDPOINT");
  AddProcessOptions(*check, *text);
  check->callback([text, &command] { command = [text] { return RunCheck(*text); }; });
}

}  // namespace predump::cli
