#include "src/pageserver/stdio.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "spdlog/spdlog.h"
#include "src/base/errors.h"
#include "src/base/unique_fd.h"
#include "src/transport/descriptor_passing.h"
#include "src/transport/relay.h"

namespace predump::pageserver {
namespace {

absl::StatusOr<base::UniqueFd> TakeStandard(int standard, int null) {
  base::UniqueFd taken(::fcntl(standard, F_DUPFD_CLOEXEC, 3));
  if (!taken.valid()) return base::ErrnoError(errno, "standard stream ", standard);
  if (::dup2(null, standard) < 0) return base::ErrnoError(errno, "dup2");
  return taken;
}

// As sshd tells it: "ADDRESS PORT OUR-ADDRESS OUR-PORT".
std::string PeerName() {
  const char* connection = ::getenv("SSH_CONNECTION");
  if (connection == nullptr) return "standard input";
  const absl::string_view text(connection);
  return absl::StrCat("ssh from ", text.substr(0, text.find(' ')));
}

[[noreturn]] void RunRelayProcess(transport::RelayEnds ends) {
  const absl::Status relayed =
      transport::RunRelay(transport::RelaySide::kAccepting, std::move(ends));
  if (!relayed.ok()) spdlog::warn("relay: {}", std::string(relayed.message()));
  spdlog::default_logger()->flush();
  ::_exit(relayed.ok() ? 0 : 1);
}

}  // namespace

absl::StatusOr<int> ServeStdio(const ServerOptions& options) {
  PREDUMP_ASSIGN_OR_RETURN(auto channel, transport::MakeDescriptorChannel());
  transport::RelayEnds ends;
  {
    const base::UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
    if (!null.valid()) return base::ErrnoError(errno, "open /dev/null");
    PREDUMP_ASSIGN_OR_RETURN(ends.in, TakeStandard(STDIN_FILENO, null.get()));
    PREDUMP_ASSIGN_OR_RETURN(ends.out, TakeStandard(STDOUT_FILENO, null.get()));
  }
  ends.channel = std::move(channel.second);
  const pid_t relay = ::fork();
  if (relay < 0) return base::ErrnoError(errno, "fork");
  if (relay == 0) {
    channel.first = base::UniqueFd();
    RunRelayProcess(std::move(ends));
  }
  ends = transport::RelayEnds();
  const absl::StatusOr<int> served = ServeHandedOver(options, std::move(channel.first), PeerName());
  // Our end of the channel is closed: it sends what is left, and ends.
  while (::waitpid(relay, nullptr, 0) < 0 && errno == EINTR) {
  }
  return served;
}

}  // namespace predump::pageserver
