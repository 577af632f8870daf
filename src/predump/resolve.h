// `predump resolve`: settles the fate of processes an engine left parked (DESIGN 10).
#ifndef PREDUMP_PREDUMP_RESOLVE_H_
#define PREDUMP_PREDUMP_RESOLVE_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "src/predump/target_link.h"

namespace predump {

enum class PersonsDecision {
  kResumeHere,  // the person knows that it does not run at the target
  kEndHere,     // the person knows that it runs there
};

struct ResolveOptions {
  std::string state_directory = "/run/predump";
  std::optional<pid_t> pid;                   // only this one; otherwise all
  std::optional<std::string> to;              // ask this endpoint instead of the journal's
  std::optional<std::string> remote_predump;  // as ServerCommandOptions; else the journal's
  std::optional<std::string> remote_options;
  std::optional<PersonsDecision> decision;  // instead of asking the target
  transport::SocketOptions socket;
  absl::Duration connect_timeout = absl::Seconds(10);  // of a server that is there already
};

struct ResolvedProcess {
  enum class Result {
    kResumed,      // it goes on here
    kEnded,        // it runs at the target; the parked copy was ended
    kGone,         // nothing was left to settle
    kUndecided,    // the target could not be asked or has not decided: still parked
    kEngineAlive,  // an engine is still at work on it
    kFailed,       // it could not be settled from here: still parked
  };
  pid_t pid = 0;
  std::string command;
  std::string target;
  Result result = Result::kUndecided;
  std::string message;
};

struct Resolution {
  std::vector<ResolvedProcess> processes;  // one for each journal entry looked at
  // Journal entries that say nothing to us: one line each, with the file's name.
  std::vector<std::string> unreadable;
};

// Looks at each entry by itself: what is wrong with one keeps no other from being settled. Errors:
// the journal cannot be read at all; `pid` was given and there is no entry for it (NotFound).
absl::StatusOr<Resolution> Resolve(const ResolveOptions& options);

}  // namespace predump

#endif  // PREDUMP_PREDUMP_RESOLVE_H_
