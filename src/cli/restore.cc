// `predump restore`.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "spdlog/spdlog.h"
#include "src/base/errors.h"
#include "src/checkpoint/host_facts.h"
#include "src/cli/commands.h"
#include "src/cli/values.h"
#include "src/predump/report.h"
#include "src/restore/image_restore.h"

namespace predump::cli {
namespace {

struct RestoreText {
  restore::ImageRestoreOptions options;
  bool detached = false;
};

int Finish(MigrationStatus status, const std::string& message) {
  absl::FPrintF(stderr, "predump: %s: %s\n", std::string(StatusName(status)), message);
  spdlog::info("{}: {}", std::string(StatusName(status)), message);
  return static_cast<int>(status);
}

int Refuse(const RestoreText& text, const restore::ImageRestoreReport& report) {
  const int code = Finish(MigrationStatus::kRefused,
                          absl::StrCat("the process in ", text.options.images_directory,
                                       " cannot run here; nothing was made"));
  for (const proto::Blocker& blocker : report.blockers) {
    const std::string advice =
        blocker.has_advice() ? absl::StrCat(" (", blocker.advice(), ")") : "";
    const std::string line = absl::StrCat(blocker.what(), ": ", blocker.reason(), advice);
    absl::FPrintF(stderr, "  %s\n", Printable(line));
  }
  return code;
}

// As a shell does for a job in its foreground: what the terminal sends is for the process.
int WaitForEnd(const RestoreText& text, const restore::ImageRestoreReport& report) {
  if (text.options.shell_job) {
    ::signal(SIGINT, SIG_IGN);
    ::signal(SIGQUIT, SIG_IGN);
  }
  const absl::StatusOr<int> code = restore::WaitForRestored(report.reaper);
  if (!code.ok()) return Finish(MigrationStatus::kFailed, std::string(code.status().message()));
  spdlog::info("process {} has ended with {}", report.pid, *code);
  return *code;
}

// It is written by a rename, after all else: what would be in its way is found before.
absl::Status CheckPidfile(const std::string& path) {
  struct stat stat;
  if (::lstat(path.c_str(), &stat) == 0) {
    if (S_ISREG(stat.st_mode)) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("--pidfile: ", path, " is there, and no regular file; name another"));
  }
  if (errno != ENOENT) return base::ErrnoError(errno, "--pidfile: ", path);
  const size_t slash = path.rfind('/');
  const std::string directory =
      slash == std::string::npos ? "." : path.substr(0, std::max<size_t>(slash, 1));
  if (::access(directory.c_str(), W_OK | X_OK) != 0) {
    return base::ErrnoError(errno, "--pidfile: cannot make a file in ", directory);
  }
  return absl::OkStatus();
}

int Run(const RestoreText& text) {
  if (!text.options.pidfile_path.empty()) {
    const absl::Status checked = CheckPidfile(text.options.pidfile_path);
    if (!checked.ok()) {
      return Finish(MigrationStatus::kUsage, std::string(checked.message()));
    }
  }
  // A landing that dies is an error of the call that meets it.
  ::signal(SIGPIPE, SIG_IGN);
  restore::ImageRestoreOptions options = text.options;
  const absl::StatusOr<proto::HostFacts> here = checkpoint::ReadHostFacts();
  if (!here.ok()) return Finish(MigrationStatus::kFailed, std::string(here.status().message()));
  options.compare_hosts = [&here](const proto::HostFacts& captured_on) {
    return checkpoint::CompareHosts(captured_on, *here, {"where it was captured", "here"});
  };
  const absl::StatusOr<restore::ImageRestoreReport> report = restore::RestoreImages(options);
  if (!report.ok()) {
    return Finish(MigrationStatus::kFailed, absl::StrCat(std::string(report.status().message()),
                                                         "; nothing of the process runs here"));
  }
  if (!report->blockers.empty()) return Refuse(text, *report);
  Finish(MigrationStatus::kCompleted,
         absl::StrFormat("process %d runs here; %d pages (%s) loaded in %.1f ms, built in %.1f ms",
                         report->pid, report->pages,
                         FormatBytes(static_cast<double>(report->pages) * 4096),
                         absl::ToDoubleMilliseconds(report->loading),
                         absl::ToDoubleMilliseconds(report->building)));
  return text.detached ? 0 : WaitForEnd(text, *report);
}

}  // namespace

void AddRestore(CLI::App& app, const CommonOptions&, Command& command) {
  auto text = std::make_shared<RestoreText>();
  restore::ImageRestoreOptions& options = text->options;
  CLI::App* restore = app.add_subcommand("restore", "Brings a stored process to life");
  restore
      ->add_option("--images-dir,-D", options.images_directory,
                   "Its images: a store (its latest), or one image directory, of predump or CRIU")
      ->type_name("DIR")
      ->required();
  restore->add_flag("--restore-detached,-d", text->detached,
                    "Return once it runs; without it, wait for its end and exit as it did");
  restore->add_option("--pidfile", options.pidfile_path, "Write its process id there")
      ->type_name("FILE");
  restore->add_flag("--new-pidns", options.new_pid_namespace,
                    "Give it a pid namespace of its own (its process id may be taken here)");
  restore->add_flag("--shell-job,-j", options.shell_job,
                    "It held a terminal: it gets this one, and stays in this session");
  restore
      ->add_option("--cgroup", options.cgroup_path,
                   "Put it into this cgroup, so that it outlives this service's")
      ->type_name("PATH");
  restore->callback([text, &command] { command = [text] { return Run(*text); }; });
}

}  // namespace predump::cli
