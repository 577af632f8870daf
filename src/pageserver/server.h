// The target side: waits for sources, gives each a session process of its own.
//
// The listener does nothing but sort connections: it reads the first bytes of each, forks one
// session process per control connection and hands data connections to the session whose token they
// bear. So a session that crashes, hangs or is killed takes nothing else with it, and each is the
// only tracer of its landing process.
// Invariant: it is single-threaded, because it forks without exec.
#ifndef PREDUMP_PAGESERVER_SERVER_H_
#define PREDUMP_PAGESERVER_SERVER_H_

#include <cstddef>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "src/base/unique_fd.h"
#include "src/transport/address.h"
#include "src/transport/socket.h"

namespace predump::pageserver {

struct ServerOptions {
  transport::Address listen;
  bool once = false;               // end with the first session, with its exit status
  bool new_pid_namespace = false;  // restore each process into a pid namespace of its own
  bool insecure_no_auth = false;   // allows listening beyond loopback
  bool shell_job = false;          // a process may come with our controlling terminal
  std::string images_directory;    // store that sessions write into; empty: processes are built
  bool no_parent = false;          // no image directory of a CRIU client builds on another
  std::string cgroup;              // where restored processes live, a path below /sys/fs/cgroup
  std::string state_directory = "/run/predump";

  // Of sockets on which we wait: when a silent peer counts as gone.
  transport::SocketOptions socket;
  // From accept(2) to a complete hello.
  absl::Duration hello_timeout = absl::Seconds(10);
  // The same where CRIU clients may come: they connect, then freeze their process, and only then
  // say anything.
  absl::Duration criu_hello_timeout = absl::Minutes(2);
  // How long one answer may take to be taken off our hands.
  absl::Duration send_timeout = absl::Seconds(30);
  // From Prepare until the last pages have arrived and the process is built.
  absl::Duration prepare_timeout = absl::Seconds(60);
  // How long to wait for Done; the fate stays on record without it.
  absl::Duration done_timeout = absl::Minutes(10);
  // A source that says and sends nothing for this long has gone, whatever its connections look
  // like: the far end of a tunnel may stand for hours after the link behind it was lost. Longer
  // than anything a source does in silence (hashing for --verify).
  absl::Duration silence_limit = absl::Minutes(10);
  // How often records are looked at for what a session left open. Its process stands still until
  // then, if its source does not ask first.
  absl::Duration settle_interval = absl::Seconds(10);
  // Fates nobody has asked for are forgotten after this long.
  absl::Duration record_limit = absl::Hours(24 * 7);
  // Connections that have not yet said what they are; the oldest goes when one more comes.
  size_t max_half_open = 64;
  size_t max_sessions = 64;
};

// Exit statuses of a session, and of RunServer with `once`.
inline constexpr int kSessionSucceeded = 0;
inline constexpr int kSessionFailed = 1;

// Serves until SIGTERM or SIGINT, or with `once` until a session has ended (a connection that only
// asks does not count). `on_ready` is called with the real address once connections are accepted.
// What was restored lives on; sessions that have not committed are cancelled.
// Blocks SIGTERM, SIGINT and SIGCHLD in the calling thread while it runs. Precondition: the process
// has one thread and no children of its own it wants to wait for.
// Returns the exit status for the program. Errors: PermissionDenied to listen beyond loopback
// without `insecure_no_auth`; from bind(2); the state directory cannot be used.
absl::StatusOr<int> RunServer(const ServerOptions& options,
                              const std::function<void(const std::string& address)>& on_ready);

// Serves one peer, called `peer` in messages, whose connections are handed over through `channel`
// (transport/descriptor_passing.h): whoever holds its other end may run programs here already, so
// that nothing is asked. Ends when the channel has ended and the sessions with it. Otherwise as
// RunServer; `listen` and `once` are not used. Returns the status of the last session.
absl::StatusOr<int> ServeHandedOver(const ServerOptions& options, base::UniqueFd channel,
                                    const std::string& peer);

}  // namespace predump::pageserver

#endif  // PREDUMP_PAGESERVER_SERVER_H_
