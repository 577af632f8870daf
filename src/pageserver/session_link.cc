#include "src/pageserver/session_link.h"

#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <time.h>

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/pageserver/descriptor_passing.h"
#include "src/transport/socket.h"

namespace predump::pageserver {

using transport::ControlChannel;
using transport::ControlFrame;
using transport::Deadline;

absl::StatusOr<SessionLink> SessionLink::Create(ControlChannel control, base::UniqueFd listener,
                                                absl::Duration send_timeout) {
  base::UniqueFd events(::epoll_create1(EPOLL_CLOEXEC));
  if (!events.valid()) return base::ErrnoError(errno, "epoll_create1");
  for (const int fd : {control.fd(), listener.get()}) {
    epoll_event event = {};
    event.events = EPOLLIN | EPOLLRDHUP;
    if (::epoll_ctl(events.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
      return base::ErrnoError(errno, "epoll_ctl");
    }
  }
  return SessionLink(std::move(control), std::move(listener), std::move(events), send_timeout);
}

absl::StatusOr<std::optional<ControlFrame>> SessionLink::Poll() {
  // The listener first: what it passed on came before what the source says next.
  PREDUMP_RETURN_IF_ERROR(PollListener());
  for (;;) {
    PREDUMP_ASSIGN_OR_RETURN(std::optional<ControlFrame> frame, control_.TryReceive());
    if (!frame.has_value()) return std::nullopt;
    if (frame->type == proto::CONTROL_PING) {
      PREDUMP_RETURN_IF_ERROR(AnswerPing(*frame));
      continue;
    }
    if (frame->type == proto::CONTROL_CANCEL) {
      PREDUMP_ASSIGN_OR_RETURN(const proto::Cancel cancel,
                               ControlChannel::Parse<proto::Cancel>(*frame, proto::CONTROL_CANCEL));
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
    absl::StatusOr<std::optional<base::UniqueFd>> passed = ReceiveDescriptor(listener_.get());
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

}  // namespace predump::pageserver
