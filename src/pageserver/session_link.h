// What one session hears: its source on the control connection, and its listener.
//
// Answers pings by itself, keeps a data connection until it is asked for, and notices a source that
// has gone without a word. Thread rule: one thread.
#ifndef PREDUMP_PAGESERVER_SESSION_LINK_H_
#define PREDUMP_PAGESERVER_SESSION_LINK_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "proto/session.pb.h"
#include "src/base/clock.h"
#include "src/base/unique_fd.h"
#include "src/transport/control_channel.h"
#include "src/transport/deadline.h"

namespace predump::pageserver {

class SessionLink {
 public:
  static absl::StatusOr<SessionLink> Create(transport::ControlChannel control,
                                            base::UniqueFd listener, absl::Duration send_timeout,
                                            absl::Duration silence_limit);

  transport::ControlChannel& control() { return control_; }

  // Readable when Poll may have something to take.
  int events_fd() const { return events_.get(); }

  // The next message from the source, if one has arrived; never waits. Errors: Unavailable the
  // source is gone; Cancelled it cancelled, or the server ends; DataLoss it broke the protocol;
  // DeadlineExceeded neither of its connections has brought anything for `silence_limit`.
  absl::StatusOr<std::optional<transport::ControlFrame>> Poll();

  // Waits for the next message. Errors: as Poll; DeadlineExceeded.
  absl::StatusOr<transport::ControlFrame> Next(transport::Deadline deadline);

  // The data connection, once it has come.
  std::optional<base::UniqueFd> TakeDataConnection();

  // Whether the source cancelled because it had seen all it wanted: nothing failed.
  bool rehearsed() const { return rehearsed_; }

  absl::Status Send(proto::ControlType type, const google::protobuf::MessageLite& message);

  // Tells the source why it is over, once; where the source cannot be told it finds out by itself.
  void SendFailed(absl::string_view reason, const std::vector<proto::Blocker>& blockers = {});

 private:
  SessionLink(transport::ControlChannel control, base::UniqueFd listener, base::UniqueFd events,
              base::UniqueFd ticks, absl::Duration send_timeout, absl::Duration silence_limit)
      : control_(std::move(control)),
        listener_(std::move(listener)),
        events_(std::move(events)),
        ticks_(std::move(ticks)),
        send_timeout_(send_timeout),
        silence_limit_(silence_limit) {}

  absl::Status PollListener();
  absl::Status CheckSilence();
  // How long ago the data connection brought something.
  absl::Duration DataSilence() const;
  absl::Status AnswerPing(const transport::ControlFrame& frame);

  transport::ControlChannel control_;
  base::UniqueFd listener_;
  base::UniqueFd events_;  // an epoll descriptor over these and ticks_
  base::UniqueFd ticks_;   // a timer: time to look for silence
  absl::Duration send_timeout_;
  absl::Duration silence_limit_;
  base::Stopwatch since_frame_;  // from the last one on the control connection
  std::optional<base::UniqueFd> data_;
  base::UniqueFd watched_data_;  // the landing reads it; we only ask when something came
  bool failed_sent_ = false;
  bool rehearsed_ = false;
};

// The Commit in `frame`. DataLoss for anything else, and for one of another session.
absl::StatusOr<proto::Commit> ParseCommit(const transport::ControlFrame& frame,
                                          absl::string_view session_id);

}  // namespace predump::pageserver

#endif  // PREDUMP_PAGESERVER_SESSION_LINK_H_
