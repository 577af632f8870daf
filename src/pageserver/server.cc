#include "src/pageserver/server.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "spdlog/spdlog.h"
#include "src/base/errors.h"
#include "src/images/image_store.h"
#include "src/pageserver/arrivals.h"
#include "src/pageserver/criu_session.h"
#include "src/pageserver/fate_store.h"
#include "src/pageserver/half_open.h"
#include "src/pageserver/session.h"
#include "src/pageserver/signal_descriptor.h"
#include "src/transport/data_format.h"
#include "src/transport/descriptor_passing.h"

namespace predump::pageserver {
namespace {

using transport::Deadline;

// How long sessions may take to end once the server was told to; then they are killed, which
// before Commit ends the landing, and after it leaves a record that the next server settles.
constexpr absl::Duration kEndTimeout = absl::Seconds(10);
// The one peer has gone: its sessions find that out by themselves, unless they wait for something
// else, which they do not do for long.
constexpr absl::Duration kDrainTimeout = absl::Seconds(30);
// Out of descriptors: a connection may wait until others have gone.
constexpr absl::Duration kAcceptPause = absl::Milliseconds(100);
// What cannot be settled (its landing is of another pid namespace) is tried ever more seldom.
constexpr int kMostSettlePause = 64;  // times settle_interval

std::string Text(const absl::Status& status) { return std::string(status.message()); }

absl::StatusOr<std::string> NewToken() {
  std::string token(transport::kTokenBytes, '\0');
  if (::getrandom(token.data(), token.size(), 0) != static_cast<ssize_t>(token.size())) {
    return base::ErrnoError(errno, "getrandom");
  }
  return token;
}

// Compares in a time that does not depend on how much is right.
bool SameToken(absl::string_view a, absl::string_view b) {
  if (a.size() != b.size()) return false;
  unsigned difference = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b[i]);
  }
  return difference == 0;
}

struct SessionProcess {
  pid_t pid = 0;
  base::UniqueFd channel;
  std::string token;
  bool is_settler = false;  // finishes what a killed session left; not a session itself
};

class Server {
 public:
  Server(const ServerOptions& options, Arrivals arrivals, SignalDescriptor signals, FateStore store)
      : options_(options),
        arrivals_(std::move(arrivals)),
        signals_(std::move(signals)),
        store_(std::move(store)),
        next_settling_(Deadline::After(options.settle_interval)) {}

  // How a session ended, where there was one: with `once` the first, otherwise the last.
  absl::StatusOr<std::optional<int>> Serve() {
    while (!ending_) {
      PREDUMP_RETURN_IF_ERROR(WaitForEvent());
      if (signals_.Drain()) ending_ = true;
      Reap();
      if (!ending_ && accepting()) AcceptAll();
      AdvanceHalfOpen();
      if (!ending_ && next_settling_.passed()) SettleIfNeeded();
      if (!arrivals_.open()) Drain();
    }
    arrivals_.Close();
    half_open_.clear();
    EndSessions();
    return result_;
  }

 private:
  bool accepting() const {
    return arrivals_.open() && (!accept_pause_.has_value() || accept_pause_->passed());
  }

  // The peer is done: what it has begun is finished, and that is all.
  void Drain() {
    if (!drain_deadline_.has_value()) drain_deadline_ = Deadline::After(kDrainTimeout);
    if ((sessions_.empty() && half_open_.empty()) || drain_deadline_->passed()) ending_ = true;
  }

  absl::Status WaitForEvent() {
    std::vector<pollfd> watched = {{signals_.fd(), POLLIN, 0}};
    Deadline deadline = next_settling_;
    if (accepting()) {
      accept_pause_.reset();
      watched.push_back({arrivals_.fd(), POLLIN, 0});
    } else {
      deadline = Deadline::Earlier(deadline, arrivals_.open() ? *accept_pause_ : *drain_deadline_);
    }
    for (const HalfOpen& connection : half_open_) {
      watched.push_back({connection.fd(), POLLIN, 0});
      deadline = Deadline::Earlier(deadline, connection.deadline());
    }
    const timespec timeout = absl::ToTimespec(deadline.Remaining());
    if (::ppoll(watched.data(), watched.size(), &timeout, nullptr) < 0 && errno != EINTR) {
      return base::ErrnoError(errno, "ppoll");
    }
    return absl::OkStatus();
  }

  void AcceptAll() {
    for (;;) {
      auto arrived = arrivals_.Take(options_.socket);
      if (!arrived.ok()) {
        spdlog::warn("{}", Text(arrived.status()));
        accept_pause_ = Deadline::After(kAcceptPause);
        return;
      }
      if (!arrived->has_value()) return;
      auto& [socket, peer] = **arrived;
      if (half_open_.size() >= options_.max_half_open) {
        spdlog::warn("connection from {}: closed, too many connections say nothing",
                     half_open_.front().peer());
        half_open_.erase(half_open_.begin());
      }
      half_open_.emplace_back(
          std::move(socket), peer,
          Deadline::After(options_.images_directory.empty() ? options_.hello_timeout
                                                            : options_.criu_hello_timeout));
    }
  }

  void AdvanceHalfOpen() {
    std::vector<HalfOpen> waiting;
    std::vector<HalfOpen> connections = std::exchange(half_open_, {});
    for (HalfOpen& connection : connections) {
      const absl::StatusOr<HalfOpen::Kind> kind = connection.Advance();
      if (!kind.ok()) {
        spdlog::warn("connection from {}: closed, {}", connection.peer(), Text(kind.status()));
        continue;
      }
      switch (*kind) {
        case HalfOpen::Kind::kUndecided:
          waiting.push_back(std::move(connection));
          break;
        case HalfOpen::Kind::kControl:
          StartSession(connection, RunSession, waiting, connections);
          break;
        case HalfOpen::Kind::kCriu:
          StartCriuSession(connection, waiting, connections);
          break;
        case HalfOpen::Kind::kData:
          PassToSession(connection);
          break;
      }
    }
    half_open_ = std::move(waiting);
  }

  void PassToSession(HalfOpen& connection) {
    const std::string token = connection.token();
    for (const SessionProcess& session : sessions_) {
      if (session.is_settler || !SameToken(session.token, token)) continue;
      const base::UniqueFd socket = connection.TakeSocket();
      // The landing reads with plain blocking calls.
      absl::Status status = transport::SetBlocking(socket.get(), true);
      if (status.ok()) status = transport::SendDescriptor(session.channel.get(), socket.get());
      if (!status.ok()) spdlog::warn("connection from {}: {}", connection.peer(), Text(status));
      return;
    }
    spdlog::warn("connection from {}: closed, it belongs to no session here", connection.peer());
  }

  using SessionMain = std::function<int(const ServerOptions&, SessionArguments)>;

  void StartCriuSession(HalfOpen& connection, std::vector<HalfOpen>& others,
                        std::vector<HalfOpen>& more) {
    if (options_.images_directory.empty()) {
      spdlog::warn(
          "connection from {}: closed, a CRIU client brings pages to be stored, and this server "
          "was started without --images-dir",
          connection.peer());
      return;
    }
    const auto run = [first_bytes = connection.first_bytes()](const ServerOptions& options,
                                                              SessionArguments arguments) {
      return RunCriuSession(options, std::move(arguments), first_bytes);
    };
    StartSession(connection, run, others, more);
  }

  void StartSession(HalfOpen& connection, const SessionMain& run, std::vector<HalfOpen>& others,
                    std::vector<HalfOpen>& more) {
    const std::string peer = connection.peer();
    base::UniqueFd control = connection.TakeSocket();
    const auto running = static_cast<size_t>(std::count_if(
        sessions_.begin(), sessions_.end(), [](const auto& s) { return !s.is_settler; }));
    if (running >= options_.max_sessions) {
      spdlog::warn("connection from {}: closed, {} sessions are at work already", peer, running);
      return;
    }
    absl::StatusOr<std::string> token = NewToken();
    auto channel = transport::MakeDescriptorChannel();
    if (!token.ok() || !channel.ok()) {
      spdlog::error("session from {}: {}", peer,
                    Text(token.ok() ? channel.status() : token.status()));
      return;
    }
    const pid_t pid = ::fork();
    if (pid < 0) {
      spdlog::error("session from {}: {}", peer, Text(base::ErrnoError(errno, "fork")));
      return;
    }
    if (pid == 0) {
      others.clear();
      more.clear();
      DropInherited();
      SessionArguments arguments{std::move(control), std::move(channel->second), *std::move(token),
                                 peer};
      channel->first = base::UniqueFd();
      Leave(run(options_, std::move(arguments)));
    }
    sessions_.push_back({pid, std::move(channel->first), *std::move(token), false});
  }

  // A session may have lost its source, or its own life, between commit and resumption without our
  // seeing it: a server before us started it, it could not finish, or a settler could not.
  void SettleIfNeeded() {
    const bool at_work = std::any_of(sessions_.begin(), sessions_.end(),
                                     [](const auto& session) { return session.is_settler; });
    if (!at_work) {
      const absl::StatusOr<bool> needed = store_.NeedsSettling(options_.record_limit);
      if (!needed.ok()) spdlog::warn("records of sessions: {}", Text(needed.status()));
      if (needed.ok() && *needed) StartSettler();
    }
    next_settling_ = Deadline::After(options_.settle_interval * settle_pause_);
  }

  // A session that was killed may have left a process between commit and resumption: its source
  // waits. A process of its own does it, because it traces and may wait.
  void StartSettler() {
    const pid_t pid = ::fork();
    if (pid < 0) {
      spdlog::error("settle what a session left: {}", Text(base::ErrnoError(errno, "fork")));
      return;
    }
    if (pid == 0) {
      DropInherited();
      const absl::Status settled = store_.Settle(options_.record_limit);
      if (!settled.ok()) spdlog::error("settle what a session left: {}", Text(settled));
      Leave(settled.ok() ? 0 : 1);
    }
    sessions_.push_back({pid, base::UniqueFd(), "", true});
  }

  // In a new child: what belongs to the listener and to other sessions.
  void DropInherited() {
    arrivals_.Close();
    half_open_.clear();
    sessions_.clear();
    // SIGTERM and SIGINT are the listener's to hear (a terminal sends them to all of us); a session
    // is told by the end of its channel.
    sigset_t children;
    ::sigemptyset(&children);
    ::sigaddset(&children, SIGCHLD);
    ::sigprocmask(SIG_UNBLOCK, &children, nullptr);
  }

  // Ends a child without running what the parent has registered for its own end.
  [[noreturn]] static void Leave(int status) {
    spdlog::default_logger()->flush();
    ::_exit(status);
  }

  void Reap() {
    // By pid: the program may have children that are not ours.
    std::vector<SessionProcess> living;
    bool crashed = false;
    for (SessionProcess& session : sessions_) {
      int status = 0;
      pid_t reaped;
      do {
        reaped = ::waitpid(session.pid, &status, WNOHANG);
      } while (reaped < 0 && errno == EINTR);
      if (reaped == 0) {
        living.push_back(std::move(session));
        continue;
      }
      const bool exited = reaped == session.pid && WIFEXITED(status);
      if (session.is_settler) {
        const bool settled = exited && WEXITSTATUS(status) == 0;
        settle_pause_ = settled ? 1 : std::min(2 * settle_pause_, kMostSettlePause);
        continue;
      }
      if (!exited) {
        spdlog::error("session process {} was killed (signal {})", session.pid,
                      WIFSIGNALED(status) ? WTERMSIG(status) : 0);
        crashed = true;
      }
      const int result = exited ? WEXITSTATUS(status) : kSessionFailed;
      if (result == kSessionNone) continue;
      if (options_.once && !result_.has_value()) ending_ = true;
      if (!options_.once || !result_.has_value()) result_ = result;
    }
    sessions_ = std::move(living);
    if (crashed) StartSettler();
  }

  void EndSessions() {
    // The end of its channel tells a session.
    for (SessionProcess& session : sessions_) session.channel = base::UniqueFd();
    const Deadline deadline = Deadline::After(kEndTimeout);
    while (!sessions_.empty() && !deadline.passed()) {
      const absl::StatusOr<transport::WaitResult> woken =
          transport::WaitFor(signals_.fd(), POLLIN, deadline);
      if (!woken.ok()) break;
      signals_.Drain();
      Reap();
    }
    for (const SessionProcess& session : sessions_) {
      spdlog::error("session process {} does not end and is killed", session.pid);
      ::kill(session.pid, SIGKILL);
      while (::waitpid(session.pid, nullptr, 0) < 0 && errno == EINTR) {
      }
    }
    sessions_.clear();
  }

  const ServerOptions& options_;
  Arrivals arrivals_;
  SignalDescriptor signals_;
  FateStore store_;
  std::vector<HalfOpen> half_open_;
  std::vector<SessionProcess> sessions_;
  std::optional<Deadline> accept_pause_;
  Deadline next_settling_;
  int settle_pause_ = 1;  // in settle_intervals
  std::optional<int> result_;
  std::optional<Deadline> drain_deadline_;
  bool ending_ = false;
};

absl::Status CheckListenAddress(const ServerOptions& options) {
  if (options.insecure_no_auth) return absl::OkStatus();
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<transport::SocketAddress> addresses,
                           options.listen.Resolve());
  if (addresses.front().IsLoopback()) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat(
      "refusing to listen on ", options.listen.ToString(),
      ": whoever can connect there could run any program here as this user. Listen on a loopback "
      "address (and tunnel to it), or say --insecure-no-auth on a network you trust"));
}

// What would stop every session should stop the server before anybody comes.
absl::Status TryStore(const std::string& path, FateStore& fates) {
  PREDUMP_ASSIGN_OR_RETURN(const images::ImageStore store, images::ImageStore::Open(path));
  const absl::Status begun =
      store
          .Begin(/*with_parent=*/false,
                 [&fates](const images::LockedStore& locked) { fates.SettleTheDead(locked); })
          .status();
  return absl::IsUnavailable(begun) ? absl::OkStatus() : begun;  // a writer will have ended
}

// Before anybody comes. What a server before this one left unfinished: a record that cannot be
// settled now is no reason not to serve, it is settled when somebody asks.
absl::Status PutInOrder(const ServerOptions& options, FateStore& store) {
  const absl::Status settled = store.Settle(options.record_limit);
  if (!settled.ok()) spdlog::warn("records of earlier sessions: {}", Text(settled));
  return options.images_directory.empty() ? absl::OkStatus()
                                          : TryStore(options.images_directory, store);
}

}  // namespace

absl::StatusOr<int> RunServer(const ServerOptions& options,
                              const std::function<void(const std::string& address)>& on_ready) {
  PREDUMP_RETURN_IF_ERROR(CheckListenAddress(options));
  PREDUMP_ASSIGN_OR_RETURN(FateStore store, FateStore::Open(options.state_directory));
  PREDUMP_ASSIGN_OR_RETURN(SignalDescriptor signals, SignalDescriptor::Create());
  PREDUMP_ASSIGN_OR_RETURN(transport::Listener listener, transport::Listen(options.listen));
  PREDUMP_RETURN_IF_ERROR(PutInOrder(options, store));
  const std::string address = listener.address.ToString();
  Server server(options, Arrivals::Listening(std::move(listener)), std::move(signals),
                std::move(store));
  on_ready(address);
  PREDUMP_ASSIGN_OR_RETURN(const std::optional<int> result, server.Serve());
  return options.once ? result.value_or(kSessionFailed) : kSessionSucceeded;
}

absl::StatusOr<int> ServeHandedOver(const ServerOptions& options, base::UniqueFd channel,
                                    const std::string& peer) {
  PREDUMP_ASSIGN_OR_RETURN(FateStore store, FateStore::Open(options.state_directory));
  PREDUMP_ASSIGN_OR_RETURN(SignalDescriptor signals, SignalDescriptor::Create());
  PREDUMP_RETURN_IF_ERROR(PutInOrder(options, store));
  PREDUMP_RETURN_IF_ERROR(transport::SendReady(channel.get()));
  Server server(options, Arrivals::HandedOver(std::move(channel), peer), std::move(signals),
                std::move(store));
  PREDUMP_ASSIGN_OR_RETURN(const std::optional<int> result, server.Serve());
  return result.value_or(kSessionSucceeded);
}

}  // namespace predump::pageserver
