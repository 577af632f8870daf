// One session, served by a process of its own.
//
// hello, then questions about fates, or Begin and everything up to Done. The landing and what is
// built from it belong to this process: when it dies before Commit, they die.
#ifndef PREDUMP_PAGESERVER_SESSION_H_
#define PREDUMP_PAGESERVER_SESSION_H_

#include <string>

#include "src/base/unique_fd.h"
#include "src/pageserver/server.h"

namespace predump::pageserver {

struct SessionArguments {
  base::UniqueFd control;   // its magic has been read
  base::UniqueFd listener;  // data connections come from here; its end means: the server ends
  std::string data_token;   // 16 bytes, by which the listener knows this session's
  std::string peer;         // for messages to people
};

// Beside kSessionSucceeded (the process runs or is stored here, or could and was not to; or only
// rounds were asked for and came) and kSessionFailed: the peer only asked something, or never said
// anything sensible.
inline constexpr int kSessionNone = 2;

// Serves until the session is over; returns its exit status. Logs what happens. Precondition: a
// process with one thread that nobody else in this program uses any more.
int RunSession(const ServerOptions& options, SessionArguments arguments);

}  // namespace predump::pageserver

#endif  // PREDUMP_PAGESERVER_SESSION_H_
