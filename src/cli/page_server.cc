// `predump page-server`.
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_format.h"
#include "spdlog/spdlog.h"
#include "src/base/errors.h"
#include "src/base/unique_fd.h"
#include "src/cli/commands.h"
#include "src/pageserver/server.h"
#include "src/pageserver/stdio.h"
#include "src/predump/report.h"

namespace predump::cli {
namespace {

struct PageServerText {
  std::string listen;
  bool stdio = false;
  bool handed_over = false;
  pageserver::ServerOptions options;
};

int Finish(const absl::StatusOr<int>& status) {
  if (status.ok()) return *status;
  absl::FPrintF(stderr, "predump: %s\n", std::string(status.status().message()));
  return static_cast<int>(MigrationStatus::kFailed);
}

// What is written to standard error is read at the other end, which puts its own time before it.
void LogForPeer(const CommonOptions& common) {
  if (!common.log_file.empty()) return;
  spdlog::set_pattern("%l: %v");
  if (common.verbosity == 0) spdlog::set_level(spdlog::level::warn);
}

int RunStdio(const PageServerText& text, const CommonOptions& common) {
  if (::isatty(STDIN_FILENO) == 1 || ::isatty(STDOUT_FILENO) == 1) {
    absl::FPrintF(stderr,
                  "predump: --stdio speaks with a predump, not with a person: `predump --to "
                  "ssh://HOST` at the other host starts it by itself\n");
    return static_cast<int>(MigrationStatus::kUsage);
  }
  LogForPeer(common);
  return Finish(pageserver::ServeStdio(text.options));
}

// Started by another predump of this host (src/predump/server_command.h), with the channel from
// which connections come as standard input.
int RunHandedOver(const PageServerText& text, const CommonOptions& common) {
  LogForPeer(common);
  base::UniqueFd channel(::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3));
  const base::UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!channel.valid() || !null.valid() || ::dup2(null.get(), STDIN_FILENO) < 0) {
    return Finish(base::ErrnoError(errno, "take over standard input"));
  }
  return Finish(pageserver::ServeHandedOver(text.options, std::move(channel), "this host"));
}

int Run(PageServerText& text, const CommonOptions& common) {
  // A peer or a reader of the log that went away, and a limit on file sizes, are errors of the call
  // that meets them, and no reason to end in the middle of a session.
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGXFSZ, SIG_IGN);
  // Records name image directories: they must mean the same to a server started elsewhere.
  if (!text.options.images_directory.empty()) {
    text.options.images_directory =
        std::filesystem::absolute(text.options.images_directory).lexically_normal();
  }
  const std::string& cgroup = text.options.cgroup;
  if (!cgroup.empty() && ::access(absl::StrCat(cgroup, "/cgroup.procs").c_str(), W_OK) != 0) {
    return Finish(base::ErrnoError(errno, "--cgroup: write ", cgroup, "/cgroup.procs"));
  }
  if (text.stdio) return RunStdio(text, common);
  if (text.handed_over) return RunHandedOver(text, common);
  if (text.listen.empty()) {
    absl::FPrintF(stderr,
                  "predump: --listen is required, or --stdio; see predump page-server -h\n");
    return static_cast<int>(MigrationStatus::kUsage);
  }
  const absl::StatusOr<transport::Address> address = transport::Address::Parse(text.listen);
  if (!address.ok()) {
    absl::FPrintF(stderr, "predump: --listen: %s\n", std::string(address.status().message()));
    return static_cast<int>(MigrationStatus::kUsage);
  }
  text.options.listen = *address;
  const absl::StatusOr<int> status =
      pageserver::RunServer(text.options, [](const std::string& ready) {
        // Scripts wait for this line: it must not sit in a buffer.
        absl::PrintF("listening on %s\n", ready);
        (void)FlushOutput();
      });
  return Finish(status);
}

}  // namespace

void AddRemoteOptions(CLI::App& app, std::string& predump, std::string& options) {
  app.add_option("--remote-predump", predump,
                 "With ssh://: how predump is run there (predump); \"sudo -n predump\" where root "
                 "does not log in")
      ->type_name("COMMAND");
  app.add_option("--remote-options", options,
                 "With ssh://: options for the page server there, as \"--new-pidns\"")
      ->type_name("OPTIONS");
}

void AddPageServer(CLI::App& app, const CommonOptions& common, Command& command) {
  auto text = std::make_shared<PageServerText>();
  CLI::App* server =
      app.add_subcommand("page-server", "Waits on the target host for processes to come");
  CLI::Option* listen =
      server->add_option("--listen", text->listen, "Where to listen; port 0 takes a free one")
          ->type_name("HOST:PORT");
  server
      ->add_flag("--stdio", text->stdio,
                 "Serve the one peer at standard input and output, as --to ssh:// does by itself")
      ->excludes(listen);
  server->add_flag("--handed-over", text->handed_over)->excludes(listen)->group("");
  server->add_flag("--once", text->options.once, "End after one session, with its outcome");
  CLI::Option* new_pidns =
      server->add_flag("--new-pidns", text->options.new_pid_namespace,
                       "Give each process a pid namespace of its own (needed where source and "
                       "target are one machine)");
  server->add_flag("--insecure-no-auth", text->options.insecure_no_auth,
                   "Listen beyond loopback although anybody who connects can run programs here");
  CLI::Option* shell_job = server->add_flag("--shell-job,-j", text->options.shell_job,
                                            "A process that holds a terminal gets this one");
  CLI::Option* images_dir =
      server
          ->add_option("--images-dir,-D", text->options.images_directory,
                       "Store what comes as image directories in DIR (DIR/1, DIR/2, ..., "
                       "DIR/latest), one for each round, instead of running it")
          ->type_name("DIR");
  server
      ->add_flag("--no-parent", text->options.no_parent,
                 "Tell CRIU clients that DIR/latest holds nothing of theirs: all pages come")
      ->needs(images_dir);
  CLI::Option* cgroup =
      server
          ->add_option("--cgroup", text->options.cgroup,
                       "Put restored processes into this cgroup, so that they outlive this "
                       "service's")
          ->type_name("PATH");
  // What is stored does not run here.
  for (CLI::Option* option : {new_pidns, shell_job, cgroup}) option->excludes(images_dir);
  server->add_option("--state-dir", text->options.state_directory, "Where fates are recorded")
      ->capture_default_str();
  server->callback(
      [text, &common, &command] { command = [text, &common] { return Run(*text, common); }; });
}

}  // namespace predump::cli
