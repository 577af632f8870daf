#include "src/pageserver/arrival.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <string>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "spdlog/spdlog.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/images/state_validation.h"
#include "src/kernel/procfs.h"
#include "src/pageserver/verification.h"
#include "src/restore/target_check.h"

namespace predump::pageserver {
namespace {

using transport::ControlChannel;
using transport::ControlFrame;
using transport::Deadline;

void AddPhase(const char* name, absl::Duration duration,
              google::protobuf::RepeatedPtrField<proto::Phase>& phases) {
  proto::Phase* phase = phases.Add();
  phase->set_name(name);
  phase->set_nanoseconds(absl::ToInt64Nanoseconds(duration));
}

}  // namespace

absl::Status Arrival::Run(const ControlFrame& prepare) {
  PREDUMP_RETURN_IF_ERROR(Prepare(prepare));
  PREDUMP_ASSIGN_OR_RETURN(const proto::Commit commit, WaitForCommit());
  PREDUMP_RETURN_IF_ERROR(Commit(commit));
  WaitForDone();
  return absl::OkStatus();
}

absl::Status Arrival::Prepare(const ControlFrame& frame) {
  const base::Stopwatch whole;
  PREDUMP_ASSIGN_OR_RETURN(proto::Prepare prepare,
                           ControlChannel::Parse<proto::Prepare>(frame, proto::CONTROL_PREPARE));
  state_ = std::move(*prepare.mutable_state());
  PREDUMP_RETURN_IF_ERROR(images::ValidateState(*state_, images::StateKind::kFull));
  if (state_->pid() != begin_.pid()) {
    return absl::DataLossError(absl::StrCat("the state is of process ", state_->pid(),
                                            ", the session of process ", begin_.pid()));
  }
  proto::Ready ready;
  AddPhase("state read", whole.Elapsed(), *ready.mutable_phases());

  // Files may have changed since Begin; pid and addresses are the landing's by now.
  const base::Stopwatch checking;
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<proto::Blocker> blockers,
                           restore::RecheckFiles(*state_));
  if (!blockers.empty()) {
    const absl::Status refused = absl::FailedPreconditionError("the target host has changed");
    link_.SendFailed(refused.message(), blockers);
    return refused;
  }
  AddPhase("files checked", checking.Elapsed(), *ready.mutable_phases());

  const base::Stopwatch waiting;
  PREDUMP_RETURN_IF_ERROR(WaitForPages());
  AddPhase("last pages awaited", waiting.Elapsed(), *ready.mutable_phases());

  absl::StatusOr<restore::BuiltProcess> built = std::move(*landing_).Build(*state_);
  landing_.reset();
  if (!built.ok()) return built.status();
  built_.emplace(*std::move(built));
  for (const proto::Phase& phase : built_->phases()) *ready.add_phases() = phase;

  // Everything Commit needs is looked up now, and not while both copies stand still.
  PREDUMP_ASSIGN_OR_RETURN(kernel::ProcessHandle process,
                           kernel::ProcessHandle::Open(built_->pid()));
  process_.emplace(std::move(process));
  PREDUMP_ASSIGN_OR_RETURN(identity_, LandingIdentity::Of(*process_));
  ready.set_restored_pid(static_cast<uint32_t>(built_->pid()));
  return link_.Send(proto::CONTROL_READY, ready);
}

absl::Status Arrival::WaitForPages() {
  const absl::Time deadline = absl::Now() + options_.prepare_timeout;
  while (!final_reached_) {
    const absl::Status waited = landing_->WaitForFinal(deadline, link_.events_fd());
    if (waited.ok()) {
      final_reached_ = true;
    } else if (!absl::IsCancelled(waited)) {
      return waited;
    } else {
      PREDUMP_ASSIGN_OR_RETURN(const std::optional<ControlFrame> frame, link_.Poll());
      if (frame.has_value()) {
        return absl::DataLossError(absl::StrCat(
            "the source sent ", transport::ControlTypeName(frame->type), " before Ready"));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Arrival::CheckProcessLives() {
  PREDUMP_ASSIGN_OR_RETURN(const kernel::StatFields stat, kernel::ReadStat(*process_));
  if (stat.state != 'Z' && stat.state != 'X') return absl::OkStatus();
  return absl::AbortedError("the process was killed at the target before it ran");
}

absl::StatusOr<proto::Commit> Arrival::WaitForCommit() {
  // When what was built is killed, the source shall not stay frozen for something that is no more.
  // A pidfd does not tell: the threads are ours to reap first. SIGCHLD does, while it is blocked.
  sigset_t child;
  sigset_t before;
  ::sigemptyset(&child);
  ::sigaddset(&child, SIGCHLD);
  ::pthread_sigmask(SIG_BLOCK, &child, &before);
  const absl::Cleanup unblock = [&before] { ::pthread_sigmask(SIG_SETMASK, &before, nullptr); };
  PREDUMP_RETURN_IF_ERROR(CheckProcessLives());
  const base::UniqueFd deaths(::signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!deaths.valid()) return base::ErrnoError(errno, "signalfd");
  for (;;) {
    // Without a limit: the source decides, and when it is gone this ends too.
    PREDUMP_ASSIGN_OR_RETURN(
        const transport::WaitResult waited,
        transport::WaitFor(link_.events_fd(), POLLIN, Deadline::Never(), deaths.get()));
    if (waited == transport::WaitResult::kOther) {
      signalfd_siginfo info;
      while (::read(deaths.get(), &info, sizeof info) > 0) {
      }
      PREDUMP_RETURN_IF_ERROR(CheckProcessLives());
      continue;
    }
    PREDUMP_ASSIGN_OR_RETURN(const std::optional<ControlFrame> arrived, link_.Poll());
    if (!arrived.has_value()) continue;
    const ControlFrame& frame = *arrived;
    if (frame.type == proto::CONTROL_VERIFY) {
      PREDUMP_RETURN_IF_ERROR(Verify(frame));
      continue;
    }
    return ParseCommit(frame, begin_.session_id());
  }
}

absl::Status Arrival::Verify(const ControlFrame& first) {
  Verification verification(*state_);
  PREDUMP_RETURN_IF_ERROR(verification.Receive(link_, first));
  PREDUMP_ASSIGN_OR_RETURN(const proto::VerifyReply reply, verification.Compare(*process_));
  return link_.Send(proto::CONTROL_VERIFY_REPLY, reply);
}

absl::Status Arrival::Commit(const proto::Commit& commit) {
  proto::Running running;
  const base::Stopwatch parking;
  const std::vector<proto::LateSignal> late(commit.late_signals().begin(),
                                            commit.late_signals().end());
  PREDUMP_RETURN_IF_ERROR(built_->QueueLateSignals(late));
  PREDUMP_RETURN_IF_ERROR(built_->QueueStop());
  AddPhase("stop queued", parking.Elapsed(), *running.mutable_phases());

  const base::Stopwatch recording;
  PREDUMP_RETURN_IF_ERROR(store_.Commit(live_, *identity_));
  committed_ = true;
  PREDUMP_RETURN_IF_ERROR(built_->ClearExitKill());
  PREDUMP_RETURN_IF_ERROR(store_.Release(live_));
  AddPhase("fate recorded", recording.Elapsed(), *running.mutable_phases());

  const base::Stopwatch releasing;
  PREDUMP_RETURN_IF_ERROR(std::move(*built_).Release());
  AddPhase("released", releasing.Elapsed(), *running.mutable_phases());
  running.set_restored_pid(static_cast<uint32_t>(identity_->pid));
  // A source that cannot be told asks for the fate.
  const absl::Status told = link_.Send(proto::CONTROL_RUNNING, running);
  if (!told.ok()) spdlog::warn("Running: {}", std::string(told.message()));
  const absl::Status resumed = store_.Resumed(live_);
  if (!resumed.ok()) spdlog::warn("{}", std::string(resumed.message()));
  spdlog::info("process {} runs here", identity_->pid);
  return absl::OkStatus();
}

void Arrival::WaitForDone() {
  const absl::StatusOr<ControlFrame> frame = link_.Next(Deadline::After(options_.done_timeout));
  if (!frame.ok() || frame->type != proto::CONTROL_DONE) {
    spdlog::info("the source did not say Done; the fate of process {} stays on record",
                 identity_->pid);
    return;
  }
  const absl::Status forgotten = store_.Forget(live_);
  if (!forgotten.ok()) spdlog::warn("{}", std::string(forgotten.message()));
}

}  // namespace predump::pageserver
