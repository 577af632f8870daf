#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "src/base/errors.h"
#include "tests/support/child_process.h"

namespace predump::test_support {
namespace {

struct Stream {
  base::UniqueFd read_end;
  std::string* into;
};

absl::StatusOr<std::array<base::UniqueFd, 2>> MakePipe() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) == -1) return base::ErrnoError(errno, "pipe2");
  return std::array<base::UniqueFd, 2>{base::UniqueFd(ends[0]), base::UniqueFd(ends[1])};
}

// Reads what is there; closes the stream at its end.
absl::Status Drain(Stream& stream) {
  char buffer[1 << 14];
  const ssize_t got = read(stream.read_end.get(), buffer, sizeof buffer);
  if (got == -1 && errno == EINTR) return absl::OkStatus();
  if (got == -1) return base::ErrnoError(errno, "read of a command's output");
  if (got == 0) return stream.read_end.Close();
  stream.into->append(buffer, static_cast<size_t>(got));
  return absl::OkStatus();
}

// Reads both streams until the command has ended. What a grandchild that outlives the command
// might still write is not waited for.
absl::Status Collect(const ChildProcess& child, std::array<Stream, 2>& streams, absl::Time end) {
  for (;;) {
    std::array<pollfd, 3> entries = {pollfd{child.pidfd(), POLLIN, 0},
                                     pollfd{streams[0].read_end.get(), POLLIN, 0},
                                     pollfd{streams[1].read_end.get(), POLLIN, 0}};
    const int64_t left_ms = absl::ToInt64Milliseconds(end - absl::Now());
    if (left_ms <= 0) return absl::DeadlineExceededError("still running");
    const int ready = poll(entries.data(), entries.size(), static_cast<int>(left_ms));
    if (ready == -1 && errno != EINTR) return base::ErrnoError(errno, "poll");
    if (ready <= 0) continue;
    bool read_something = false;
    for (size_t i = 0; i < streams.size(); ++i) {
      if (entries[i + 1].revents == 0) continue;
      PREDUMP_RETURN_IF_ERROR(Drain(streams[i]));
      read_something = true;
    }
    // Output written before the end is in the pipes by now.
    if (!read_something && entries[0].revents != 0) return absl::OkStatus();
  }
}

}  // namespace

absl::StatusOr<CommandResult> RunCommand(StartOptions options, absl::Duration deadline) {
  const absl::Time end = absl::Now() + deadline;
  PREDUMP_ASSIGN_OR_RETURN(auto output, MakePipe());
  PREDUMP_ASSIGN_OR_RETURN(auto errors, MakePipe());
  options.stdout_fd = output[1].get();
  options.stderr_fd = errors[1].get();
  PREDUMP_ASSIGN_OR_RETURN(ChildProcess child, ChildProcess::Start(options));
  output[1] = base::UniqueFd();
  errors[1] = base::UniqueFd();

  CommandResult result;
  std::array<Stream, 2> streams = {Stream{std::move(output[0]), &result.output},
                                   Stream{std::move(errors[0]), &result.errors}};
  if (absl::Status collected = Collect(child, streams, end); !collected.ok()) {
    return base::Annotate(collected,
                          absl::StrCat(absl::StrJoin(options.argv, " "),
                                       " (output so far: ", result.output, result.errors, ")"));
  }
  PREDUMP_ASSIGN_OR_RETURN(result.exit, child.Wait(absl::Seconds(5)));
  return result;
}

absl::StatusOr<CommandResult> RunCommand(const std::vector<std::string>& argv,
                                         absl::Duration deadline) {
  StartOptions options;
  options.argv = argv;
  return RunCommand(std::move(options), deadline);
}

}  // namespace predump::test_support
