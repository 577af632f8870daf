// `predump page-server`.
#include <stdio.h>

#include <memory>
#include <string>

#include "absl/strings/str_format.h"
#include "spdlog/spdlog.h"
#include "src/cli/commands.h"
#include "src/pageserver/server.h"
#include "src/predump/report.h"

namespace predump::cli {
namespace {

struct PageServerText {
  std::string listen;
  pageserver::ServerOptions options;
};

int Run(PageServerText& text) {
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
        fflush(stdout);
      });
  if (!status.ok()) {
    absl::FPrintF(stderr, "predump: %s\n", std::string(status.status().message()));
    return static_cast<int>(MigrationStatus::kFailed);
  }
  return *status;
}

}  // namespace

void AddPageServer(CLI::App& app, const CommonOptions&, Command& command) {
  auto text = std::make_shared<PageServerText>();
  CLI::App* server =
      app.add_subcommand("page-server", "Waits on the target host for processes to come");
  server->add_option("--listen", text->listen, "Where to listen; port 0 takes a free one")
      ->type_name("HOST:PORT")
      ->required();
  server->add_flag("--once", text->options.once, "End after one session, with its outcome");
  server->add_flag("--new-pidns", text->options.new_pid_namespace,
                   "Give each process a pid namespace of its own (needed where source and target "
                   "are one machine)");
  server->add_flag("--insecure-no-auth", text->options.insecure_no_auth,
                   "Listen beyond loopback although anybody who connects can run programs here");
  server->add_flag("--shell-job,-j", text->options.shell_job,
                   "A process that holds a terminal gets this one");
  server
      ->add_option("--cgroup", text->options.cgroup,
                   "Put restored processes into this cgroup, so that they outlive this service's")
      ->type_name("PATH");
  server->add_option("--state-dir", text->options.state_directory, "Where fates are recorded")
      ->capture_default_str();
  server->callback([text, &command] { command = [text] { return Run(*text); }; });
}

}  // namespace predump::cli
