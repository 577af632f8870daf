#include "src/predump/round_requests.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <iterator>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/base/unique_fd.h"

namespace predump {
namespace {

constexpr size_t kMostLineBytes = 64;

}  // namespace

std::optional<std::string> RoundRequests::TakeLine() {
  const size_t end = read_.find('\n');
  if (end == std::string::npos) return std::nullopt;
  std::string line = read_.substr(0, end);
  read_.erase(0, end + 1);
  return line;
}

absl::StatusOr<NextStep> RoundRequests::Next(Cancellation& cancellation,
                                             const kernel::ProcessHandle& process) {
  if (freeze_asked_) return NextStep::kFreeze;
  std::optional<std::string> line = TakeLine();
  while (!line.has_value() && !ended_ && read_.size() <= kMostLineBytes) {
    PREDUMP_RETURN_IF_ERROR(Wait(cancellation, process));
    line = TakeLine();
  }
  if (cancellation.requested()) return absl::CancelledError(cancellation.reason());
  if (!line.has_value() && ended_) return rounds_only_ ? NextStep::kFreeze : NextStep::kCancel;
  if (!line.has_value()) line = read_;
  if (*line == "round" || line->empty()) return NextStep::kAnotherRound;
  if (*line != "freeze" || rounds_only_) {
    return absl::InvalidArgumentError(
        absl::StrCat("--rounds -: \"", absl::CHexEscape(line->substr(0, kMostLineBytes)),
                     "\" was asked for on standard input; ",
                     rounds_only_ ? "with --leave-running it can be \"round\""
                                  : "it can be \"round\" or \"freeze\""));
  }
  freeze_asked_ = true;
  return NextStep::kFreeze;
}

// Until there is something to read.
absl::Status RoundRequests::Wait(Cancellation& cancellation, const kernel::ProcessHandle& process) {
  // What a cancellation can shut down, and so wake us with.
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    return base::ErrnoError(errno, "socketpair");
  }
  const base::UniqueFd wake(ends[0]);
  const base::UniqueFd other(ends[1]);
  const WatchedSocket watched(cancellation, wake.get());
  pollfd waits[] = {{fd_, POLLIN, 0}, {wake.get(), POLLIN, 0}, {process.pidfd(), POLLIN, 0}};
  if (::poll(waits, std::size(waits), -1) < 0 && errno != EINTR) {
    return base::ErrnoError(errno, "poll for what is asked for on standard input");
  }
  if (cancellation.requested()) return absl::CancelledError(cancellation.reason());
  if (waits[2].revents != 0) {
    return base::TargetExited(absl::StrCat("process ", process.pid(), " has exited"));
  }
  if (waits[0].revents == 0) return absl::OkStatus();
  char bytes[kMostLineBytes];
  const ssize_t got = ::read(fd_, bytes, sizeof bytes);
  if (got < 0 && errno != EINTR && errno != EAGAIN) {
    return base::ErrnoError(errno, "read of what is asked for on standard input");
  }
  if (got == 0) ended_ = true;
  if (got > 0) read_.append(bytes, static_cast<size_t>(got));
  return absl::OkStatus();
}

}  // namespace predump
