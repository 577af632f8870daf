// The subcommands of `predump`: each adds its options to the parser and runs.
#ifndef PREDUMP_CLI_COMMANDS_H_
#define PREDUMP_CLI_COMMANDS_H_

#include <functional>
#include <string>

#include "CLI/CLI.hpp"

namespace predump::cli {

// Options every subcommand has.
struct CommonOptions {
  std::string log_file;
  int verbosity = 0;
};

// What to run once parsing is done; returns the exit code.
using Command = std::function<int()>;

// Writes out what stands for standard output. False: it could not be written (now or before), which
// was said on standard error, once.
bool FlushOutput();

// How the page server of ssh:// is started.
void AddRemoteOptions(CLI::App& app, std::string& predump, std::string& options);

// Each adds its options to `app` and, when its command was given, sets `command`.
void AddMigrate(CLI::App& app, const CommonOptions& common, Command& command);
void AddPageServer(CLI::App& app, const CommonOptions& common, Command& command);
void AddCheck(CLI::App& app, const CommonOptions& common, Command& command);
void AddCore(CLI::App& app, const CommonOptions& common, Command& command);
void AddRestore(CLI::App& app, const CommonOptions& common, Command& command);
void AddResolve(CLI::App& app, const CommonOptions& common, Command& command);
void AddShow(CLI::App& app, const CommonOptions& common, Command& command);

}  // namespace predump::cli

#endif  // PREDUMP_CLI_COMMANDS_H_
