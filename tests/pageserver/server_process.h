// A real page server in a child process, and a source that speaks the protocol by hand.
#ifndef PREDUMP_TESTS_PAGESERVER_SERVER_PROCESS_H_
#define PREDUMP_TESTS_PAGESERVER_SERVER_PROCESS_H_

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/session.pb.h"
#include "src/base/unique_fd.h"
#include "src/pageserver/fate_store.h"
#include "src/pageserver/server.h"
#include "src/transport/address.h"
#include "src/transport/control_channel.h"
#include "src/transport/data_writer.h"

namespace predump::pageserver {

inline transport::Deadline Soon() { return transport::Deadline::After(absl::Seconds(20)); }

// Runs RunServer in a child; killed and reaped with the object. Its sessions are made our children
// where it dies before them (PR_SET_CHILD_SUBREAPER), so that a test can see what is left.
class ServerProcess {
 public:
  static std::unique_ptr<ServerProcess> Start(ServerOptions options);
  ~ServerProcess();

  const transport::Address& address() const { return address_; }
  pid_t pid() const { return pid_; }
  // Session processes, oldest first. Waits until there are `count`.
  std::vector<pid_t> WaitForSessions(size_t count) const;
  void Signal(int signal_number) const;
  // Its exit status; -1 where a signal ended it, or it did not end.
  int Wait();

 private:
  ServerProcess(pid_t pid, transport::Address address) : pid_(pid), address_(std::move(address)) {}

  pid_t pid_;
  transport::Address address_;
  std::optional<int> exit_status_;
};

// A number no process has, and none is likely to get soon.
pid_t FreePid();
// Waits until process `pid` is there (or gone); false where that does not come true.
bool WaitForProcess(pid_t pid, bool there);

class FakeSource {
 public:
  // Connects, says hello.
  explicit FakeSource(const transport::Address& address);

  transport::ControlChannel& control() { return *control_; }
  transport::DataWriter& data() { return *data_; }
  const proto::ServerHello& hello() const { return hello_; }
  const std::string& session_id() const { return session_id_; }

  // A Begin whose answer, on a machine in order, is yes.
  proto::Begin MakeBegin(pid_t pid) const;
  absl::StatusOr<proto::BeginReply> Begin(const proto::Begin& begin);
  void OpenData(const std::string& token);
  // Begin, data connection, one round with one page; the landing is there afterwards.
  void BringRounds(pid_t pid, bool rounds_only = false);

  absl::StatusOr<proto::Fate> AskFate(const std::string& session_id);
  // What the server says, an error included.
  absl::Status ExpectFailed();
  // Closes both connections, as a source does that is killed.
  void Vanish();

 private:
  transport::Address address_;
  std::optional<transport::ControlChannel> control_;
  std::optional<transport::DataWriter> data_;
  proto::ServerHello hello_;
  std::string session_id_;
};

}  // namespace predump::pageserver

#endif  // PREDUMP_TESTS_PAGESERVER_SERVER_PROCESS_H_
