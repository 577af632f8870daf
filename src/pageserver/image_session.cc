#include "src/pageserver/image_session.h"

#include <errno.h>
#include <poll.h>

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"
#include "src/base/errors.h"
#include "src/images/page_chain.h"
#include "src/images/state_images.h"
#include "src/images/state_validation.h"
#include "src/pageserver/verification.h"
#include "src/restore/plan_room.h"
#include "src/transport/socket.h"

namespace predump::pageserver {
namespace {

using transport::ControlChannel;
using transport::ControlFrame;
using transport::Deadline;

// A source that has sent its rounds closes both connections; the control one may come second.
constexpr absl::Duration kCloseTimeout = absl::Seconds(5);

void AddPhase(const char* name, absl::Duration duration, proto::Ready& ready) {
  proto::Phase* phase = ready.add_phases();
  phase->set_name(name);
  phase->set_nanoseconds(absl::ToInt64Nanoseconds(duration));
}

absl::Status Unexpected(const ControlFrame& frame, absl::string_view where) {
  return absl::DataLossError(
      absl::StrCat("the source sent ", transport::ControlTypeName(frame.type), " ", where));
}

}  // namespace

uint64_t SourceHost::UptimeMicroseconds() const {
  const int64_t now_ns = facts.boottime_ns() + absl::ToInt64Nanoseconds(since_hello.Elapsed());
  return static_cast<uint64_t>(std::max<int64_t>(now_ns, 0)) / 1000;
}

absl::StatusOr<bool> ImageSession::Advance() {
  if (!reader_.has_value()) {
    std::optional<base::UniqueFd> data = link_.TakeDataConnection();
    if (!data.has_value()) return false;
    PREDUMP_ASSIGN_OR_RETURN(FrameReader reader, FrameReader::Create(*std::move(data)));
    reader_.emplace(std::move(reader));
  }
  if (images_.memory_complete()) return false;
  absl::StatusOr<bool> more = images_.Advance(*reader_, source_.UptimeMicroseconds());
  if (base::ErrnoOf(more.status()).has_value()) {
    more = base::Annotate(more.status(), images_.directory().final_path());
  }
  if (more.ok() || absl::IsUnavailable(more.status()) || absl::IsAborted(more.status())) {
    return more;
  }
  // The words first: the source looks for them when it sees the number.
  link_.SendFailed(more.status().message());
  reader_->SendError(base::ErrnoOf(more.status()).value_or(EPROTO));
  return more;
}

absl::StatusOr<ControlFrame> ImageSession::TakePages() {
  for (;;) {
    PREDUMP_ASSIGN_OR_RETURN(std::optional<ControlFrame> frame, link_.Poll());
    if (frame.has_value()) return *std::move(frame);
    PREDUMP_ASSIGN_OR_RETURN(const bool more, Advance());
    if (more) continue;
    const bool reads = reader_.has_value() && !images_.memory_complete();
    PREDUMP_RETURN_IF_ERROR(transport::WaitFor(reads ? reader_->socket() : link_.events_fd(),
                                               POLLIN, Deadline::Never(), link_.events_fd()));
  }
}

absl::Status ImageSession::TakeRounds() {
  absl::StatusOr<ControlFrame> frame = TakePages();
  if (absl::IsUnavailable(frame.status()) && reader_.has_value()) {
    // One connection of a source that leaves may be seen to end before the other.
    const absl::StatusOr<ControlFrame> last = link_.Next(Deadline::After(kCloseTimeout));
    if (last.ok()) frame = last;
    if (absl::IsCancelled(last.status())) return last.status();
  }
  if (frame.ok() && frame->type != proto::CONTROL_DONE) {
    return Unexpected(*frame, "where only rounds were announced");
  }
  if (!frame.ok() && !absl::IsUnavailable(frame.status())) return frame.status();
  spdlog::info("{} rounds of process {} are stored", images_.rounds_published(), begin_.pid());
  return absl::OkStatus();
}

absl::Status ImageSession::TakeProcess(LiveSession& live) {
  PREDUMP_ASSIGN_OR_RETURN(const ControlFrame frame, TakePages());
  if (frame.type != proto::CONTROL_PREPARE) return Unexpected(frame, "where Prepare was expected");
  PREDUMP_RETURN_IF_ERROR(Prepare(frame));
  const absl::StatusOr<proto::Commit> commit = WaitForCommit();
  if (absl::IsCancelled(commit.status()) && link_.rehearsed()) return Keep(live);
  PREDUMP_RETURN_IF_ERROR(commit.status());
  PREDUMP_RETURN_IF_ERROR(Commit(live, *commit));
  WaitForDone(live);
  return absl::OkStatus();
}

absl::Status ImageSession::AwaitMemory() {
  const Deadline deadline = Deadline::After(options_.prepare_timeout);
  while (!images_.memory_complete()) {
    PREDUMP_ASSIGN_OR_RETURN(const std::optional<ControlFrame> frame, link_.Poll());
    if (frame.has_value()) return Unexpected(*frame, "before Ready");
    PREDUMP_ASSIGN_OR_RETURN(const bool more, Advance());
    if (more) continue;
    if (deadline.passed()) {
      return absl::DeadlineExceededError(reader_.has_value()
                                             ? "the last round did not arrive in time"
                                             : "the source sent Prepare without a data connection");
    }
    if (images_.memory_complete()) break;
    PREDUMP_RETURN_IF_ERROR(
        transport::WaitFor(reader_.has_value() ? reader_->socket() : link_.events_fd(), POLLIN,
                           deadline, link_.events_fd()));
  }
  return absl::OkStatus();
}

absl::Status ImageSession::Prepare(const ControlFrame& frame) {
  const base::Stopwatch reading;
  PREDUMP_ASSIGN_OR_RETURN(proto::Prepare prepare,
                           ControlChannel::Parse<proto::Prepare>(frame, proto::CONTROL_PREPARE));
  state_ = std::move(*prepare.mutable_state());
  PREDUMP_RETURN_IF_ERROR(images::ValidateState(*state_, images::StateKind::kFull));
  if (state_->pid() != begin_.pid()) {
    return absl::DataLossError(absl::StrCat("the state is of process ", state_->pid(),
                                            ", the session of process ", begin_.pid()));
  }
  // Stored, it would be ended at the source.
  PREDUMP_RETURN_IF_ERROR(restore::CheckRoomToBuild(*state_));
  proto::Ready ready;
  AddPhase("state read", reading.Elapsed(), ready);

  const base::Stopwatch waiting;
  PREDUMP_RETURN_IF_ERROR(AwaitMemory());
  AddPhase("last pages awaited", waiting.Elapsed(), ready);

  const base::Stopwatch writing;
  proto::StoredExtra extra;
  *extra.mutable_host() = source_.facts;
  extra.set_program_version(source_.program_version);
  extra.set_session_id(begin_.session_id());
  extra.set_tcp_close(begin_.tcp_close());
  extra.set_shell_job(begin_.shell_job());
  PREDUMP_RETURN_IF_ERROR(images::WriteState(images_.directory().fd(), *state_, std::move(extra)));
  AddPhase("images written", writing.Elapsed(), ready);

  const base::Stopwatch syncing;
  PREDUMP_RETURN_IF_ERROR(images_.directory().Sync());
  AddPhase("images synced", syncing.Elapsed(), ready);
  ready.set_stored_in(images_.directory().final_path());
  return link_.Send(proto::CONTROL_READY, ready);
}

absl::StatusOr<proto::Commit> ImageSession::WaitForCommit() {
  for (;;) {
    // Without a limit: the source decides, and when it is gone this ends too.
    PREDUMP_ASSIGN_OR_RETURN(const ControlFrame frame, link_.Next(Deadline::Never()));
    if (frame.type == proto::CONTROL_VERIFY) {
      PREDUMP_RETURN_IF_ERROR(Verify(frame));
      continue;
    }
    return ParseCommit(frame, begin_.session_id());
  }
}

absl::Status ImageSession::Verify(const ControlFrame& first) {
  Verification verification(*state_);
  PREDUMP_RETURN_IF_ERROR(verification.Receive(link_, first));
  // Read anew from what is on disk, through all parents: as a restore will.
  PREDUMP_ASSIGN_OR_RETURN(const images::PageChain chain,
                           images::PageChain::Open(images_.directory().fd(), images_.pages_of()));
  PREDUMP_ASSIGN_OR_RETURN(const proto::VerifyReply reply, verification.Compare(chain));
  return link_.Send(proto::CONTROL_VERIFY_REPLY, reply);
}

absl::Status ImageSession::Commit(LiveSession& live, const proto::Commit& commit) {
  images::PartialDirectory& directory = images_.directory();
  PREDUMP_RETURN_IF_ERROR(images::AddLateSignals(directory.fd(), commit.late_signals()));
  // What is on record must already be what will be renamed.
  PREDUMP_RETURN_IF_ERROR(directory.Sync());
  PREDUMP_RETURN_IF_ERROR(
      store_.Commit(live, StoredImages{directory.partial_path(), directory.final_path()}));
  committed_ = true;
  // After an error it may have its name all the same: the fate store finds out.
  PREDUMP_RETURN_IF_ERROR(directory.Publish());
  PREDUMP_RETURN_IF_ERROR(store_.Release(live));
  SayStored();
  return absl::OkStatus();
}

absl::Status ImageSession::Keep(LiveSession& live) {
  // Its images are no handover: whoever asks is told that the process is the source's.
  PREDUMP_RETURN_IF_ERROR(store_.Destroy(live));
  PREDUMP_RETURN_IF_ERROR(images_.directory().Publish());
  SayStored();
  return absl::OkStatus();
}

void ImageSession::SayStored() {
  proto::Running running;
  running.set_restored_pid(0);
  running.set_stored_in(images_.directory().final_path());
  // A source that cannot be told asks for the fate.
  const absl::Status told = link_.Send(proto::CONTROL_RUNNING, running);
  if (!told.ok()) spdlog::warn("Running: {}", std::string(told.message()));
  spdlog::info("process {} is stored in {}", begin_.pid(), running.stored_in());
}

void ImageSession::WaitForDone(LiveSession& live) {
  const absl::StatusOr<ControlFrame> frame = link_.Next(Deadline::After(options_.done_timeout));
  if (!frame.ok() || frame->type != proto::CONTROL_DONE) {
    spdlog::info("the source did not say Done; the fate of process {} stays on record",
                 begin_.pid());
    return;
  }
  const absl::Status forgotten = store_.Forget(live);
  if (!forgotten.ok()) spdlog::warn("{}", std::string(forgotten.message()));
}

}  // namespace predump::pageserver
