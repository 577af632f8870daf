#include "src/pageserver/session.h"

#include <poll.h>

#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/session.pb.h"
#include "spdlog/spdlog.h"
#include "src/base/errors.h"
#include "src/checkpoint/host_facts.h"
#include "src/images/state_validation.h"
#include "src/pageserver/arrival.h"
#include "src/pageserver/fate_store.h"
#include "src/pageserver/image_session.h"
#include "src/pageserver/incoming_images.h"
#include "src/pageserver/session_link.h"
#include "src/restore/landing.h"
#include "src/restore/target_check.h"
#include "src/transport/control_channel.h"
#include "src/transport/socket.h"

namespace predump::pageserver {
namespace {

using transport::ControlChannel;
using transport::ControlFrame;
using transport::Deadline;

// Between the hello and what the source wants: it may look at its process meanwhile.
constexpr absl::Duration kBeginTimeout = absl::Minutes(2);
// A source that has sent its rounds closes both connections; the control one may come second.
constexpr absl::Duration kCloseTimeout = absl::Seconds(5);

class Session {
 public:
  Session(const ServerOptions& options, SessionLink link, FateStore store, std::string data_token,
          std::string peer)
      : options_(options),
        link_(std::move(link)),
        store_(std::move(store)),
        data_token_(std::move(data_token)),
        peer_(std::move(peer)) {}

  int Run() {
    absl::StatusOr<int> result = Converse();
    if (result.ok()) return *result;
    const std::string why(result.status().message());
    if (decided_elsewhere_) {
      spdlog::error("session from {}: {}", peer_, why);
      SettleOwnFate();
      // The source asks for the fate in any case; it may say why.
      link_.SendFailed(why);
      return kSessionFailed;
    }
    // The landing is dead: it belonged to a part of Converse. First the record, then the word.
    if (live_.has_value()) {
      const absl::Status destroyed = store_.Destroy(*live_);
      if (!destroyed.ok()) spdlog::error("{}", std::string(destroyed.message()));
    }
    if (link_.rehearsed() && begin_.has_value() && !stores_images()) {
      spdlog::info("session from {}: process {} could run here; it stays at the source, as asked",
                   peer_, begin_->pid());
      return kSessionSucceeded;
    }
    link_.SendFailed(why);
    if (!begin_.has_value()) {
      // One that asked nothing, or came to ask and is shown out, is no trouble.
      const bool harmless =
          absl::IsUnavailable(result.status()) || absl::IsCancelled(result.status());
      spdlog::log(harmless ? spdlog::level::debug : spdlog::level::warn, "connection from {}: {}",
                  peer_, why);
      return kSessionNone;
    }
    spdlog::warn("session from {}: process {} does not come: {}", peer_, begin_->pid(), why);
    return kSessionFailed;
  }

 private:
  // The whole session. An error: nothing came of it, but for decided_elsewhere_.
  absl::StatusOr<int> Converse() {
    PREDUMP_ASSIGN_OR_RETURN(proto::HostFacts facts, checkpoint::ReadHostFacts());
    facts.set_fate_store_id(store_.id());
    facts.set_stores_images(stores_images());
    PREDUMP_ASSIGN_OR_RETURN(proto::ClientHello hello,
                             transport::ServerHandshake(link_.control(), facts,
                                                        Deadline::After(options_.hello_timeout)));
    source_ =
        SourceHost{hello.program_version(), std::move(*hello.mutable_host()), base::Stopwatch()};
    PREDUMP_ASSIGN_OR_RETURN(const std::optional<ControlFrame> frame, AnswerQuestions());
    if (!frame.has_value()) return kSessionNone;
    PREDUMP_ASSIGN_OR_RETURN(proto::Begin begin,
                             ControlChannel::Parse<proto::Begin>(*frame, proto::CONTROL_BEGIN));
    begin_ = std::move(begin);
    PREDUMP_ASSIGN_OR_RETURN(const bool accepted, Accept());
    if (!accepted) return begin_->check_only() ? kSessionNone : kSessionFailed;
    if (stores_images()) return StoreImages();
    return begin_->rounds_only() ? TakeRounds() : TakeProcess();
  }

  // Questions about fates, as many as come. Nothing: the source left without wanting more.
  absl::StatusOr<std::optional<ControlFrame>> AnswerQuestions() {
    bool answered = false;
    for (;;) {
      absl::StatusOr<ControlFrame> frame = link_.Next(Deadline::After(kBeginTimeout));
      if (answered && absl::IsUnavailable(frame.status())) return std::nullopt;
      if (!frame.ok()) return frame.status();
      if (frame->type != proto::CONTROL_QUERY_FATE) return *std::move(frame);
      PREDUMP_RETURN_IF_ERROR(AnswerFate(*frame));
      answered = true;
    }
  }

  absl::Status AnswerFate(const ControlFrame& frame) {
    PREDUMP_ASSIGN_OR_RETURN(const proto::QueryFate query, ControlChannel::Parse<proto::QueryFate>(
                                                               frame, proto::CONTROL_QUERY_FATE));
    PREDUMP_ASSIGN_OR_RETURN(const Fate fate, store_.Decide(query.session_id()));
    proto::Fate answer;
    switch (fate.outcome) {
      case Outcome::kDestroyed:
        answer.set_outcome(proto::Fate::DESTROYED);
        break;
      case Outcome::kRunning:
        answer.set_outcome(proto::Fate::RUNNING);
        if (fate.stored_in.empty()) {
          answer.set_restored_pid(static_cast<uint32_t>(fate.restored_pid));
        } else {
          answer.set_stored_in(fate.stored_in);
        }
        break;
      case Outcome::kPending:
        answer.set_outcome(proto::Fate::PENDING);
        break;
    }
    return link_.Send(proto::CONTROL_FATE, answer);
  }

  // Answers Begin. False: the process may not come, or was only asked about.
  absl::StatusOr<bool> Accept() {
    if (begin_->session_id().size() != kSessionIdBytes) {
      return absl::DataLossError(absl::StrCat("a session id has ", kSessionIdBytes, " bytes"));
    }
    PREDUMP_RETURN_IF_ERROR(images::ValidateState(begin_->preview(), images::StateKind::kPreview));
    if (begin_->preview().pid() != begin_->pid()) {
      return absl::DataLossError("Begin and its preview name different processes");
    }
    PREDUMP_ASSIGN_OR_RETURN(const std::vector<proto::Blocker> blockers, FindBlockers());
    proto::BeginReply reply;
    for (const proto::Blocker& blocker : blockers) *reply.add_blockers() = blocker;
    const bool accepted = blockers.empty() && !begin_->check_only();
    if (accepted) {
      // On record before the source can know the token: from here on the fate can be asked for.
      if (!begin_->rounds_only()) {
        PREDUMP_ASSIGN_OR_RETURN(LiveSession live, store_.BeginSession(begin_->session_id()));
        live_.emplace(std::move(live));
      }
      reply.set_data_token(data_token_);
    }
    PREDUMP_RETURN_IF_ERROR(link_.Send(proto::CONTROL_BEGIN_REPLY, reply));
    if (!blockers.empty()) {
      spdlog::info("session from {}: process {} cannot come, {} reasons given", peer_,
                   begin_->pid(), blockers.size());
    } else if (accepted) {
      spdlog::info("session from {}: process {} is coming", peer_, begin_->pid());
    }
    return accepted;
  }

  bool stores_images() const { return !options_.images_directory.empty(); }

  absl::StatusOr<std::vector<proto::Blocker>> FindBlockers() {
    if (stores_images()) return TakeHoldOfStore();
    restore::TargetCheckOptions check;
    check.new_pid_namespace = options_.new_pid_namespace;
    check.shell_job = options_.shell_job;
    check.cgroup_path = options_.cgroup;
    return restore::FindTargetBlockers(*begin_, check);
  }

  // Whatever the process needs, it will need it where it is restored. Here there has to be room.
  absl::StatusOr<std::vector<proto::Blocker>> TakeHoldOfStore() {
    absl::StatusOr<IncomingImages> images =
        IncomingImages::Start(options_.images_directory, store_, begin_->pid());
    if (images.ok()) {
      std::vector<proto::Blocker> blockers;
      if (!begin_->rounds_only()) restore::FindRoomBlockers(begin_->preview(), blockers);
      if (!begin_->check_only() && blockers.empty()) images_.emplace(*std::move(images));
      return blockers;
    }
    proto::Blocker blocker;
    blocker.set_what(absl::StrCat("images directory ", options_.images_directory));
    blocker.set_reason(std::string(images.status().message()));
    return std::vector<proto::Blocker>{std::move(blocker)};
  }

  absl::StatusOr<int> StoreImages() {
    image_session_.emplace(options_, *begin_, source_, link_, store_,
                           *std::exchange(images_, std::nullopt));
    const absl::Status stored =
        begin_->rounds_only() ? image_session_->TakeRounds() : image_session_->TakeProcess(*live_);
    decided_elsewhere_ = image_session_->committed();
    if (!stored.ok()) return stored;
    return kSessionSucceeded;
  }

  bool shell_job() const { return options_.shell_job && begin_->shell_job(); }

  absl::Status StartLanding(base::UniqueFd data_socket) {
    restore::LandingOptions landing;
    landing.pid = static_cast<pid_t>(begin_->pid());
    landing.new_pid_namespace = options_.new_pid_namespace;
    landing.data_socket = std::move(data_socket);
    if (begin_->has_monotonic_offset_ns()) {
      landing.monotonic_offset_ns = begin_->monotonic_offset_ns();
    }
    if (begin_->has_boottime_offset_ns()) landing.boottime_offset_ns = begin_->boottime_offset_ns();
    landing.cgroup_path = options_.cgroup;
    landing.shell_job = shell_job();
    PREDUMP_ASSIGN_OR_RETURN(restore::Landing started, restore::Landing::Start(std::move(landing)));
    landing_.emplace(std::move(started));
    return absl::OkStatus();
  }

  // Lets the landing take pages until the source says something else.
  absl::StatusOr<ControlFrame> TakePages() {
    for (;;) {
      PREDUMP_ASSIGN_OR_RETURN(std::optional<ControlFrame> frame, link_.Poll());
      if (!landing_.has_value()) {
        if (std::optional<base::UniqueFd> data = link_.TakeDataConnection()) {
          PREDUMP_RETURN_IF_ERROR(StartLanding(*std::move(data)));
        }
      }
      if (frame.has_value()) return *std::move(frame);
      if (landing_.has_value() && !final_reached_) {
        const absl::Status waited =
            landing_->WaitForFinal(absl::InfiniteFuture(), link_.events_fd());
        if (!waited.ok() && !absl::IsCancelled(waited)) return waited;
        final_reached_ = waited.ok();
      } else {
        PREDUMP_RETURN_IF_ERROR(transport::WaitFor(link_.events_fd(), POLLIN, Deadline::Never()));
      }
    }
  }

  // The source may have opened it before it sent Prepare and still be overtaken by it: two
  // connections have no order.
  absl::Status AwaitDataConnection() {
    const Deadline deadline = Deadline::After(options_.prepare_timeout);
    while (!landing_.has_value()) {
      PREDUMP_ASSIGN_OR_RETURN(const std::optional<ControlFrame> frame, link_.Poll());
      if (frame.has_value()) {
        return absl::DataLossError(absl::StrCat(
            "the source sent ", transport::ControlTypeName(frame->type), " before Ready"));
      }
      if (std::optional<base::UniqueFd> data = link_.TakeDataConnection()) {
        return StartLanding(*std::move(data));
      }
      if (deadline.passed()) {
        return absl::DeadlineExceededError("the source sent Prepare without a data connection");
      }
      PREDUMP_RETURN_IF_ERROR(transport::WaitFor(link_.events_fd(), POLLIN, deadline));
    }
    return absl::OkStatus();
  }

  // --rounds: pages come, and then the source leaves; nothing is ever built.
  absl::StatusOr<int> TakeRounds() {
    absl::StatusOr<ControlFrame> frame = TakePages();
    if (absl::IsAborted(frame.status())) {
      // The landing saw the end of its connection before we saw the end of ours.
      const absl::Status landing = frame.status();
      frame = link_.Next(Deadline::After(kCloseTimeout));
      if (absl::IsDeadlineExceeded(frame.status())) return landing;
    }
    if (frame.ok() && frame->type != proto::CONTROL_DONE) {
      return absl::DataLossError(absl::StrCat("the source sent ",
                                              transport::ControlTypeName(frame->type),
                                              " where only rounds were announced"));
    }
    if (!frame.ok() && !absl::IsUnavailable(frame.status())) return frame.status();
    spdlog::info("session from {}: the rounds of process {} are over", peer_, begin_->pid());
    return kSessionSucceeded;
  }

  absl::StatusOr<int> TakeProcess() {
    absl::StatusOr<ControlFrame> frame = TakePages();
    if (frame.ok() && frame->type != proto::CONTROL_PREPARE) {
      frame = absl::DataLossError(absl::StrCat("the source sent ",
                                               transport::ControlTypeName(frame->type),
                                               " where Prepare was expected"));
    }
    absl::Status ready = frame.status();
    if (ready.ok()) ready = AwaitDataConnection();
    if (!ready.ok()) {
      landing_.reset();
      return ready;
    }
    Arrival arrival(options_, *begin_, link_, store_, *live_,
                    *std::exchange(landing_, std::nullopt), final_reached_);
    const absl::Status arrived = arrival.Run(*frame);
    decided_elsewhere_ = arrival.committed();
    if (!arrived.ok()) return arrived;
    return kSessionSucceeded;
  }

  // Something failed between commit and resumption. What is left of the process now decides, as it
  // would if we had been killed: the same code, for the same reasons.
  void SettleOwnFate() {
    const std::string id = live_->id();
    live_.reset();
    const absl::StatusOr<Fate> fate = store_.Decide(id);
    if (!fate.ok()) {
      spdlog::error("the fate stays open: {}", std::string(fate.status().message()));
    }
  }

  const ServerOptions& options_;
  SessionLink link_;
  FateStore store_;
  std::string data_token_;
  std::string peer_;
  std::optional<proto::Begin> begin_;
  std::optional<LiveSession> live_;
  std::optional<restore::Landing> landing_;
  SourceHost source_;
  std::optional<IncomingImages> images_;
  // Lives until the fate is decided: it takes away what it did not publish.
  std::optional<ImageSession> image_session_;
  bool final_reached_ = false;
  bool decided_elsewhere_ = false;
};

absl::StatusOr<Session> MakeSession(const ServerOptions& options, SessionArguments arguments) {
  PREDUMP_ASSIGN_OR_RETURN(ControlChannel control,
                           ControlChannel::Adopt(std::move(arguments.control)));
  PREDUMP_ASSIGN_OR_RETURN(SessionLink link,
                           SessionLink::Create(std::move(control), std::move(arguments.listener),
                                               options.send_timeout, options.silence_limit));
  PREDUMP_ASSIGN_OR_RETURN(FateStore store, FateStore::Open(options.state_directory));
  return Session(options, std::move(link), std::move(store), std::move(arguments.data_token),
                 std::move(arguments.peer));
}

}  // namespace

int RunSession(const ServerOptions& options, SessionArguments arguments) {
  const std::string peer = arguments.peer;
  absl::StatusOr<Session> session = MakeSession(options, std::move(arguments));
  if (!session.ok()) {
    spdlog::error("session from {}: {}", peer, std::string(session.status().message()));
    return kSessionFailed;
  }
  return session->Run();
}

}  // namespace predump::pageserver
