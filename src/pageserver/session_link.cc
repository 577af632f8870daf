#include "src/pageserver/session_link.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/transport/descriptor_passing.h"
#include "src/transport/socket.h"

namespace predump::pageserver {

using transport::ControlChannel;
using transport::ControlFrame;
using transport::Deadline;

namespace {

// So much late, in parts of the limit, the silence may be noticed.
constexpr int kLooksWithinSilenceLimit = 4;

absl::StatusOr<base::UniqueFd> MakeTicks(absl::Duration interval) {
  base::UniqueFd ticks(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  if (!ticks.valid()) return base::ErrnoError(errno, "timerfd_create");
  itimerspec period = {};
  period.it_interval = absl::ToTimespec(interval);
  period.it_value = period.it_interval;
  if (::timerfd_settime(ticks.get(), 0, &period, nullptr) != 0) {
    return base::ErrnoError(errno, "timerfd_settime");
  }
  return ticks;
}

}  // namespace

absl::StatusOr<SessionLink> SessionLink::Create(ControlChannel control, base::UniqueFd listener,
                                                absl::Duration send_timeout,
                                                absl::Duration silence_limit) {
  base::UniqueFd events(::epoll_create1(EPOLL_CLOEXEC));
  if (!events.valid()) return base::ErrnoError(errno, "epoll_create1");
  PREDUMP_ASSIGN_OR_RETURN(base::UniqueFd ticks,
                           MakeTicks(silence_limit / kLooksWithinSilenceLimit));
  for (const int fd : {control.fd(), listener.get(), ticks.get()}) {
    epoll_event event = {};
    event.events = EPOLLIN | EPOLLRDHUP;
    if (::epoll_ctl(events.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
      return base::ErrnoError(errno, "epoll_ctl");
    }
  }
  return SessionLink(std::move(control), std::move(listener), std::move(events), std::move(ticks),
                     send_timeout, silence_limit);
}

std::optional<base::UniqueFd> SessionLink::TakeDataConnection() {
  if (data_.has_value()) {
    watched_data_ = base::UniqueFd(::fcntl(data_->get(), F_DUPFD_CLOEXEC, 0));
  }
  return std::exchange(data_, std::nullopt);
}

absl::StatusOr<std::optional<ControlFrame>> SessionLink::Poll() {
  // The listener first: what it passed on came before what the source says next.
  PREDUMP_RETURN_IF_ERROR(PollListener());
  for (;;) {
    PREDUMP_ASSIGN_OR_RETURN(std::optional<ControlFrame> frame, control_.TryReceive());
    if (!frame.has_value()) {
      PREDUMP_RETURN_IF_ERROR(CheckSilence());
      return std::nullopt;
    }
    since_frame_ = base::Stopwatch();
    if (frame->type == proto::CONTROL_PING) {
      PREDUMP_RETURN_IF_ERROR(AnswerPing(*frame));
      continue;
    }
    if (frame->type == proto::CONTROL_CANCEL) {
      PREDUMP_ASSIGN_OR_RETURN(const proto::Cancel cancel,
                               ControlChannel::Parse<proto::Cancel>(*frame, proto::CONTROL_CANCEL));
      rehearsed_ = cancel.rehearsed();
      return absl::CancelledError(absl::StrCat("the source cancelled: ", cancel.reason()));
    }
    return frame;
  }
}

absl::StatusOr<ControlFrame> SessionLink::Next(Deadline deadline) {
  for (;;) {
    PREDUMP_ASSIGN_OR_RETURN(std::optional<ControlFrame> frame, Poll());
    if (frame.has_value()) return *std::move(frame);
    if (deadline.passed()) {
      return absl::DeadlineExceededError("the source did not go on in time");
    }
    PREDUMP_RETURN_IF_ERROR(transport::WaitFor(events_.get(), POLLIN, deadline));
  }
}

absl::Status SessionLink::PollListener() {
  for (;;) {
    absl::StatusOr<std::optional<base::UniqueFd>> passed =
        transport::ReceiveDescriptor(listener_.get());
    if (absl::IsUnavailable(passed.status())) {
      return absl::CancelledError("the page server is ending");
    }
    if (!passed.ok()) return passed.status();
    if (!passed->has_value()) return absl::OkStatus();
    // The landing reads one stream; a second one with the same token is nobody's.
    if (data_.has_value()) {
      spdlog::warn("a second data connection of the session was closed");
    } else {
      data_ = *std::move(*passed);
    }
  }
}

absl::Status SessionLink::CheckSilence() {
  uint64_t ticks = 0;
  if (::read(ticks_.get(), &ticks, sizeof ticks) < 0) return absl::OkStatus();  // none since
  if (std::min(since_frame_.Elapsed(), DataSilence()) < silence_limit_) return absl::OkStatus();
  return absl::DeadlineExceededError(absl::StrCat("the source has said and sent nothing for ",
                                                  absl::FormatDuration(silence_limit_),
                                                  "; it is taken for gone"));
}

absl::Duration SessionLink::DataSilence() const {
  if (!watched_data_.valid()) return absl::InfiniteDuration();
  tcp_info info = {};
  socklen_t size = sizeof info;
  if (::getsockopt(watched_data_.get(), IPPROTO_TCP, TCP_INFO, &info, &size) != 0) {
    return absl::ZeroDuration();  // no TCP: nothing can be told, so nothing is held against it
  }
  return absl::Milliseconds(info.tcpi_last_data_recv);
}

absl::Status SessionLink::AnswerPing(const ControlFrame& frame) {
  PREDUMP_ASSIGN_OR_RETURN(const proto::Ping ping,
                           ControlChannel::Parse<proto::Ping>(frame, proto::CONTROL_PING));
  proto::Pong pong;
  if (ping.has_sender_monotonic_ns()) pong.set_sender_monotonic_ns(ping.sender_monotonic_ns());
  pong.set_receiver_monotonic_ns(base::ClockNanoseconds(CLOCK_MONOTONIC));
  pong.set_receiver_boottime_ns(base::ClockNanoseconds(CLOCK_BOOTTIME));
  return Send(proto::CONTROL_PONG, pong);
}

absl::Status SessionLink::Send(proto::ControlType type,
                               const google::protobuf::MessageLite& message) {
  return control_.Send(type, message, Deadline::After(send_timeout_));
}

void SessionLink::SendFailed(absl::string_view reason,
                             const std::vector<proto::Blocker>& blockers) {
  if (std::exchange(failed_sent_, true)) return;
  proto::Failed failed;
  failed.set_reason(std::string(reason));
  for (const proto::Blocker& blocker : blockers) *failed.add_blockers() = blocker;
  Send(proto::CONTROL_FAILED, failed).IgnoreError();
}

absl::StatusOr<proto::Commit> ParseCommit(const ControlFrame& frame, absl::string_view session_id) {
  PREDUMP_ASSIGN_OR_RETURN(proto::Commit commit,
                           ControlChannel::Parse<proto::Commit>(frame, proto::CONTROL_COMMIT));
  if (commit.session_id() != session_id) {
    return absl::DataLossError("the source commits another session");
  }
  return commit;
}

}  // namespace predump::pageserver
