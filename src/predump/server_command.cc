#include "src/predump/server_command.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "spdlog/spdlog.h"
#include "src/base/errors.h"
#include "src/transport/descriptor_passing.h"
#include "src/transport/relay.h"

namespace predump {
namespace {

using transport::Deadline;
using transport::Endpoint;
using transport::SshHost;

// From the end of our connections until it has ended too; what is under way there (a process that
// is just being released) takes milliseconds.
constexpr absl::Duration kEndPatience = absl::Seconds(6);
// It has closed its channel already.
constexpr absl::Duration kFailPatience = absl::Seconds(2);
// A shell's exit statuses for what it cannot run, and ssh's own for all its failures.
constexpr int kNotExecutable = 126;
constexpr int kNotFound = 127;
constexpr int kSshFailed = 255;

absl::StatusOr<std::pair<base::UniqueFd, base::UniqueFd>> MakeStreams() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) {
    return base::ErrnoError(errno, "socketpair");
  }
  return std::pair(base::UniqueFd(fds[0]), base::UniqueFd(fds[1]));
}

absl::StatusOr<base::UniqueFd> Duplicate(int fd) {
  base::UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!copy.valid()) return base::ErrnoError(errno, "fcntl F_DUPFD_CLOEXEC");
  return copy;
}

// Whether ssh has somebody to ask for a password or about a new host.
bool SomebodyCanAnswer() {
  if (::getenv("SSH_ASKPASS") != nullptr) return true;
  return base::UniqueFd(::open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY)).valid();
}

// By its name, as ps shows it; by the kernel's link to it where that name is gone.
std::string OwnProgram() {
  constexpr char kLink[] = "/proc/self/exe";
  char path[PATH_MAX];
  const ssize_t n = ::readlink(kLink, path, sizeof path - 1);
  if (n <= 0) return kLink;
  path[n] = '\0';
  return ::access(path, X_OK) == 0 ? path : kLink;
}

std::string Destination(const SshHost& host) {
  return host.user.empty() ? host.host : absl::StrCat(host.user, "@", host.host);
}

}  // namespace

std::string SshCommandLine(const SshHost& host) {
  const std::string port = host.port.has_value() ? absl::StrCat("-p ", *host.port, " ") : "";
  return absl::StrCat("ssh ", port, Destination(host));
}

class ServerCommand::RelayThread {
 public:
  explicit RelayThread(transport::RelayEnds ends) {
    sigset_t all;
    sigset_t before;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    thread_ = std::thread([this, ends = std::move(ends)]() mutable {
      status_ = transport::RunRelay(transport::RelaySide::kOpening, std::move(ends));
    });
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
  ~RelayThread() { Join().IgnoreError(); }

  // Precondition: its channel has ended, or its pipes have.
  absl::Status Join() {
    if (thread_.joinable()) thread_.join();
    return status_;
  }

 private:
  absl::Status status_;
  std::thread thread_;
};

ServerCommand::ServerCommand(Endpoint endpoint, ServerCommandOptions options, int stop_fd)
    : endpoint_(std::move(endpoint)), options_(std::move(options)), stop_fd_(stop_fd) {}

ServerCommand::~ServerCommand() { End(); }

absl::StatusOr<base::UniqueFd> ServerCommand::Connect(Deadline deadline) {
  PREDUMP_ASSIGN_OR_RETURN(auto pair, MakeStreams());
  auto& [ours, theirs] = pair;
  if (channel_.valid() && transport::SendDescriptor(channel_.get(), theirs.get()).ok()) {
    return std::move(ours);
  }
  PREDUMP_RETURN_IF_ERROR(Start(deadline));
  PREDUMP_RETURN_IF_ERROR(transport::SendDescriptor(channel_.get(), theirs.get()));
  return std::move(ours);
}

absl::Status ServerCommand::Start(Deadline deadline) {
  End();
  PREDUMP_RETURN_IF_ERROR(Launch());
  const absl::Status ready = transport::AwaitReady(channel_.get(), deadline, stop_fd_);
  if (!ready.ok()) return Explain(ready);
  child_->LogLines();
  return absl::OkStatus();
}

absl::Status ServerCommand::Launch() {
  PREDUMP_ASSIGN_OR_RETURN(auto channel, transport::MakeDescriptorChannel());
  ChildOptions child;
  child.arguments = Arguments();
  if (endpoint_.kind() == Endpoint::Kind::kFile) {
    child.own_session = true;
    child.input = std::move(channel.second);
    child.output = base::UniqueFd(::open("/dev/null", O_WRONLY | O_CLOEXEC));
    if (!child.output.valid()) return base::ErrnoError(errno, "open /dev/null");
    PREDUMP_ASSIGN_OR_RETURN(child_, ChildCommand::Start(std::move(child)));
  } else {
    PREDUMP_ASSIGN_OR_RETURN(auto streams, MakeStreams());
    PREDUMP_ASSIGN_OR_RETURN(child.output, Duplicate(streams.second.get()));
    child.input = std::move(streams.second);
    transport::RelayEnds ends;
    PREDUMP_ASSIGN_OR_RETURN(ends.out, Duplicate(streams.first.get()));
    ends.in = std::move(streams.first);
    ends.channel = std::move(channel.second);
    PREDUMP_ASSIGN_OR_RETURN(child_, ChildCommand::Start(std::move(child)));
    relay_ = std::make_unique<RelayThread>(std::move(ends));
  }
  channel_ = std::move(channel.first);
  return absl::OkStatus();
}

std::vector<std::string> ServerCommand::Arguments() const {
  if (endpoint_.kind() == Endpoint::Kind::kFile) {
    return {OwnProgram(),          "page-server", "--handed-over",         "--images-dir",
            endpoint_.directory(), "--state-dir", options_.state_directory};
  }
  const SshHost& host = endpoint_.ssh();
  // Nothing but one command, whatever else a person has set up for logins there.
  std::vector<std::string> arguments = {"ssh",
                                        "-T",
                                        "-oForwardAgent=no",
                                        "-oForwardX11=no",
                                        "-oClearAllForwardings=yes",
                                        "-oPermitLocalCommand=no",
                                        "-oRemoteCommand=none"};
  if (!SomebodyCanAnswer()) arguments.push_back("-oBatchMode=yes");
  if (host.port.has_value()) arguments.push_back(absl::StrCat("-p", *host.port));
  if (!host.user.empty()) arguments.push_back(absl::StrCat("-l", host.user));
  arguments.insert(arguments.end(), {"--", host.host,
                                     absl::StrCat(options_.remote_predump, " page-server --stdio",
                                                  options_.remote_options.empty() ? "" : " ",
                                                  options_.remote_options)});
  return arguments;
}

absl::Status ServerCommand::Explain(const absl::Status& ready) {
  // What its relay found wrong with the answer says more than how the command ended after that.
  const bool ended = absl::IsUnavailable(ready);
  const std::string peer = endpoint_.ToString();
  channel_ = base::UniqueFd();
  const ChildExit exit = child_->End(ended ? kFailPatience : absl::ZeroDuration());
  absl::Status relayed = relay_ == nullptr ? absl::OkStatus() : relay_->Join();
  const std::string words = absl::StrJoin(child_->last_words(), "; ");
  const std::string description = Describe(exit);
  relay_.reset();
  child_.reset();
  if (absl::IsDataLoss(relayed) || absl::IsFailedPrecondition(relayed)) {
    return base::Annotate(relayed, peer);
  }
  if (!ended) {
    return absl::Status(
        ready.code(), absl::StrCat(peer, ": ", ready.message(), words.empty() ? "" : ": ", words));
  }
  return absl::UnavailableError(absl::StrCat(peer, ": ", description));
}

std::string ServerCommand::Describe(const ChildExit& exit) const {
  const bool is_ssh = endpoint_.kind() == Endpoint::Kind::kSsh;
  std::string words = absl::StrJoin(child_->last_words(), "; ");
  if (words.empty()) words = "it said nothing";
  if (exit.was_killed) return absl::StrCat("it neither served nor ended: ", words);
  if (WIFSIGNALED(exit.status)) {
    return absl::StrCat(is_ssh ? "ssh" : "the page server", " was killed by signal ",
                        WTERMSIG(exit.status), ": ", words);
  }
  const int status = WEXITSTATUS(exit.status);
  if (is_ssh && status == kSshFailed) {
    return absl::StrCat("ssh does not get there: ", words, " (does `",
                        SshCommandLine(endpoint_.ssh()), "` work?)");
  }
  if (is_ssh && (status == kNotFound || status == kNotExecutable)) {
    return absl::StrCat("no predump can be run there: ", words,
                        "; install it, or say with --remote-predump where it is");
  }
  return absl::StrCat("the page server did not start, and ended with ", status, ": ", words);
}

void ServerCommand::End() {
  channel_ = base::UniqueFd();
  if (child_ == nullptr) return;
  child_->End(kEndPatience);
  if (relay_ != nullptr) {
    const absl::Status relayed = relay_->Join();
    if (!relayed.ok()) {
      spdlog::warn("{}: {}", endpoint_.ToString(), std::string(relayed.message()));
    }
  }
  relay_.reset();
  child_.reset();
}

}  // namespace predump
