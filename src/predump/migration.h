// Moves one running process to another host: the source's whole part of it.
#ifndef PREDUMP_PREDUMP_MIGRATION_H_
#define PREDUMP_PREDUMP_MIGRATION_H_

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "src/base/units.h"
#include "src/predump/cancellation.h"
#include "src/predump/policy.h"
#include "src/predump/report.h"
#include "src/predump/server_command.h"
#include "src/transport/endpoint.h"
#include "src/transport/page_server_protocol.h"
#include "src/transport/socket.h"

namespace predump {

struct MigrationOptions {
  pid_t pid = 0;
  transport::Endpoint to;
  transport::SocketOptions socket;
  ServerCommandOptions server_command;  // of ssh:// and file:
  PolicyLimits policy;
  std::string tracker = "auto";
  std::string source = "auto";
  base::ByteCount bandwidth_per_second;  // 0: no limit
  absl::Duration freeze_timeout = absl::Seconds(2);
  bool leave_running = false;
  std::optional<int> round_requests;  // --rounds -: a descriptor, a borrow
  bool verify = false;
  bool tcp_close = false;
  bool shell_job = false;
  bool use_bpf = true;
  std::string state_directory = "/run/predump";
  // Of criu://: what messages look like there.
  transport::page_server::HeaderSize criu_header = transport::page_server::HeaderSize::kOld;
  // Of rounds only: where inventory.img is written, as `criu pre-dump` leaves it; empty: nowhere.
  std::string images_directory;

  // --rounds K|- --leave-running: memory only, no state is sent.
  bool rounds_only() const {
    return leave_running && (policy.exact_rounds.has_value() || round_requests.has_value());
  }
  // The rounds are for CRIU's last step, which goes on from soft-dirty marks.
  bool before_criu() const {
    return to.kind() == transport::Endpoint::Kind::kCriu || !images_directory.empty();
  }
};

// Runs the migration to its end. Whatever happens, the report says what became of the process.
// Must be called from the thread that may trace: all ptrace calls come from it.
MigrationReport Migrate(const MigrationOptions& options, Cancellation& cancellation,
                        MigrationObserver& observer);

// `predump check --pid N [--to HOST:PORT]`: what keeps the process from moving; empty: nothing.
// Touches nothing. With `ask_target`, the page server is asked too.
absl::StatusOr<std::vector<std::string>> CheckProcess(const MigrationOptions& options,
                                                      bool ask_target);

}  // namespace predump

#endif  // PREDUMP_PREDUMP_MIGRATION_H_
