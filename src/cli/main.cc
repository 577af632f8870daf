// predump: moves a running Linux process to another machine while it keeps running.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

#include <exception>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "spdlog/sinks/basic_file_sink.h"
#include "spdlog/sinks/stdout_sinks.h"
#include "spdlog/spdlog.h"
#include "src/base/errors.h"
#include "src/cli/commands.h"
#include "src/cli/values.h"
#include "src/predump/report.h"

namespace predump::cli {
namespace {

constexpr int kUsageExit = static_cast<int>(MigrationStatus::kUsage);

void AddCommon(CLI::App& app, CommonOptions& common) {
  app.add_option("--log-file,-o", common.log_file, "Write the log to FILE")->type_name("FILE");
  app.add_flag("-v", common.verbosity, "Log more; -vv logs most");
}

// Log lines go to the file where one was named, else to standard error: but on a terminal the
// command's own lines stand there, so that only warnings join them unless -v asks for more.
void SetUpLog(const CommonOptions& common, bool terminal) {
  std::shared_ptr<spdlog::logger> logger;
  if (!common.log_file.empty()) {
    logger = spdlog::basic_logger_mt("predump", common.log_file, /*truncate=*/false);
  } else {
    logger = spdlog::stderr_logger_mt("predump");
  }
  logger->set_pattern("%Y-%m-%d %H:%M:%S.%f %l: %v");
  auto level = spdlog::level::info;
  if (common.log_file.empty() && terminal) level = spdlog::level::warn;
  if (common.verbosity == 1) level = spdlog::level::debug;
  if (common.verbosity >= 2) level = spdlog::level::trace;
  logger->set_level(level);
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(logger);
}

// Where one of the standard descriptors is closed, the next open would take its number, and what is
// meant for a person would go into a socket or a file.
void FillStandardDescriptors() {
  int fd;
  do {
    fd = ::open("/dev/null", O_RDWR);
  } while (fd >= 0 && fd <= STDERR_FILENO);
  if (fd >= 0) ::close(fd);
}

// Capturing holds a duplicate of each descriptor of the process.
void RaiseDescriptorLimit() {
  struct rlimit limit;
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

// "" is a variable of a script that was never set, and no value; and 010 is not process 8.
void CheckValues(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    if (option->get_expected_max() == 0) continue;
    const bool is_pid = option->check_name("--pid");
    option->check([is_pid](const std::string& value) {
      if (value.empty()) return std::string("takes a value, not \"\"");
      if (is_pid && !IsProcessId(value)) {
        return absl::StrCat("takes a process id, a number above 0, not \"", value, "\"");
      }
      return std::string();
    });
  }
  for (CLI::App* subcommand : app.get_subcommands(nullptr)) CheckValues(*subcommand);
}

// Options of the migration are options of the program, so that the parser takes them behind a
// subcommand too.
void RefuseForeignOptions(const CLI::App& app) {
  const std::string subcommand = app.get_subcommands().front()->get_name();
  for (const CLI::Option* option : app.get_options()) {
    if (option->count() == 0 || option->check_name("--log-file") || option->check_name("-v")) {
      continue;
    }
    throw CLI::ValidationError(
        option->get_name(),
        absl::StrCat("is no option of ", subcommand, " (see predump ", subcommand, " --help)"));
  }
}

int Main(int argc, char** argv) {
  FillStandardDescriptors();
  RaiseDescriptorLimit();
  CLI::App app("Moves a running process to another machine while it keeps running.", "predump");
  app.set_version_flag("--version,-V", PREDUMP_VERSION);
  app.footer(
      "Exit codes: 0 done, 1 failed, 2 wrong use, 3 refused, 4 cancelled, 5 parked (run `predump "
      "resolve`),\n6 the process ended by itself. On 1, 3 and 4 the process runs on here, "
      "unchanged.\n-v and --log-file FILE may stand behind a subcommand, too. More: man predump");
  app.fallthrough();  // subcommands inherit it: -v and -o may stand behind them too
  CommonOptions common;
  AddCommon(app, common);
  Command command;
  AddMigrate(app, common, command);
  AddPageServer(app, common, command);
  AddCheck(app, common, command);
  AddCore(app, common, command);
  AddRestore(app, common, command);
  AddResolve(app, common, command);
  AddShow(app, common, command);
  app.require_subcommand(0, 1);
  CheckValues(app);
  try {
    app.parse(argc, argv);
    if (!app.get_subcommands().empty()) RefuseForeignOptions(app);
  } catch (const CLI::ParseError& error) {
    // Help and version are "errors" of code 0.
    return app.exit(error) == 0 ? 0 : kUsageExit;
  }
  if (!command) {
    absl::FPrintF(stderr,
                  "predump: nothing to do: give --pid N --to ssh://HOST (or another place), or a "
                  "subcommand; see predump --help\n");
    return kUsageExit;
  }
  try {
    SetUpLog(common, ::isatty(STDERR_FILENO) == 1);
  } catch (const spdlog::spdlog_ex& error) {
    absl::FPrintF(stderr, "predump: --log-file: %s\n", error.what());
    return kUsageExit;
  }
  const int code = command();
  return FlushOutput() || code != 0 ? code : static_cast<int>(MigrationStatus::kFailed);
}

}  // namespace

bool FlushOutput() {
  errno = 0;
  if (::fflush(stdout) == 0 && ::ferror(stdout) == 0) return true;
  const int error = errno != 0 ? errno : EIO;  // of an earlier write nobody knows
  absl::FPrintF(stderr, "predump: standard output: %s\n",
                std::string(base::ErrnoError(error, "write").message()));
  ::clearerr(stdout);
  return false;
}

}  // namespace predump::cli

int main(int argc, char** argv) {
  try {
    return predump::cli::Main(argc, argv);
  } catch (const std::exception& error) {
    fprintf(stderr, "predump: %s\n", error.what());
    return 1;
  }
}
