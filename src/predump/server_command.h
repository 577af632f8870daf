// A page server of one's own, and the connections to it: what is behind ssh:// and file:.
//
// A command is started that serves us alone: `ssh HOST predump page-server --stdio`, with a relay
// over its standard streams, or a page server on this host that takes connections from a channel.
// It is started when first connected to, and again when it has ended meanwhile; it ends with this
// object, or with the process it belongs to. What it writes to standard error goes to the log, and
// into the error where it does not come to serve.
//
// Thread rule: one thread at a time, the same one that lives as long as the program.
#ifndef PREDUMP_PREDUMP_SERVER_COMMAND_H_
#define PREDUMP_PREDUMP_SERVER_COMMAND_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/base/unique_fd.h"
#include "src/predump/child_command.h"
#include "src/transport/deadline.h"
#include "src/transport/endpoint.h"

namespace predump {

// How a page server is started, beyond its address.
struct ServerCommandOptions {
  // Of ssh://, in the words of the shell there.
  std::string remote_predump = "predump";
  std::string remote_options;
  // Of file:, where the fates of what is stored are recorded.
  std::string state_directory = "/run/predump";
};

class ServerCommand {
 public:
  // For an endpoint of kind kSsh or kFile. `stop_fd`, where there is one, is borrowed: once it can
  // be read, waiting for the server ends with Cancelled.
  ServerCommand(transport::Endpoint endpoint, ServerCommandOptions options, int stop_fd = -1);
  ~ServerCommand();
  ServerCommand(const ServerCommand&) = delete;
  ServerCommand& operator=(const ServerCommand&) = delete;

  // A connection, blocking. Errors: Unavailable, saying what the command said; DeadlineExceeded;
  // Cancelled; FailedPrecondition the predump there is of another version.
  absl::StatusOr<base::UniqueFd> Connect(transport::Deadline deadline);

 private:
  class RelayThread;

  absl::Status Start(transport::Deadline deadline);
  absl::Status Launch();
  std::vector<std::string> Arguments() const;
  // Why it did not come to serve; ends it.
  absl::Status Explain(const absl::Status& ready);
  std::string Describe(const ChildExit& exit) const;
  // Lets it finish what is under way, and no longer than that.
  void End();

  const transport::Endpoint endpoint_;
  const ServerCommandOptions options_;
  const int stop_fd_;
  base::UniqueFd channel_;
  std::unique_ptr<ChildCommand> child_;
  std::unique_ptr<RelayThread> relay_;
};

// What is typed to a shell to get there: "ssh -p 4022 user@host".
std::string SshCommandLine(const transport::SshHost& host);

}  // namespace predump

#endif  // PREDUMP_PREDUMP_SERVER_COMMAND_H_
