// The target's half of the handover (DESIGN 10): from Prepare to Done.
//
// Thread rule: the thread that started the landing.
#ifndef PREDUMP_PAGESERVER_ARRIVAL_H_
#define PREDUMP_PAGESERVER_ARRIVAL_H_

#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/session.pb.h"
#include "src/kernel/process.h"
#include "src/pageserver/fate_store.h"
#include "src/pageserver/server.h"
#include "src/pageserver/session_link.h"
#include "src/restore/built_process.h"
#include "src/restore/landing.h"

namespace predump::pageserver {

class Arrival {
 public:
  // `landing` has received everything already where `final_reached`.
  Arrival(const ServerOptions& options, const proto::Begin& begin, SessionLink& link,
          FateStore& store, LiveSession& live, restore::Landing landing, bool final_reached)
      : options_(options),
        begin_(begin),
        link_(link),
        store_(store),
        live_(live),
        landing_(std::move(landing)),
        final_reached_(final_reached) {}

  // Takes Prepare and goes on to the end. OK: the process runs here. An error with committed()
  // false: nothing of it runs or will (the landing is dead once this object is gone); with
  // committed() true: the fate store decides.
  absl::Status Run(const transport::ControlFrame& prepare);

  bool committed() const { return committed_; }

 private:
  absl::Status Prepare(const transport::ControlFrame& frame);
  absl::Status WaitForPages();
  // Serves Verify until Commit comes.
  absl::Status CheckProcessLives();
  absl::StatusOr<proto::Commit> WaitForCommit();
  absl::Status Verify(const transport::ControlFrame& frame);
  absl::Status Commit(const proto::Commit& commit);
  void WaitForDone();

  const ServerOptions& options_;
  const proto::Begin& begin_;
  SessionLink& link_;
  FateStore& store_;
  LiveSession& live_;
  std::optional<restore::Landing> landing_;
  bool final_reached_;
  bool committed_ = false;
  std::optional<proto::ProcessState> state_;
  std::optional<restore::BuiltProcess> built_;
  std::optional<kernel::ProcessHandle> process_;
  std::optional<LandingIdentity> identity_;
};

}  // namespace predump::pageserver

#endif  // PREDUMP_PAGESERVER_ARRIVAL_H_
