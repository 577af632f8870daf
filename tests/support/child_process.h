// Programs started by tests, and commands run to their end.
#ifndef PREDUMP_TESTS_SUPPORT_CHILD_PROCESS_H_
#define PREDUMP_TESTS_SUPPORT_CHILD_PROCESS_H_

#include <sys/types.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "src/base/unique_fd.h"

namespace predump::test_support {

// How a process ended: by exit(code), or by a signal.
struct ExitStatus {
  std::optional<int> code;
  std::optional<int> signal;

  bool ok() const { return code == 0; }
  std::string ToString() const;  // "exit code 1", "signal 9"
};

struct StartOptions {
  std::vector<std::string> argv;                   // argv[0] is looked up in PATH
  std::map<std::string, std::string> environment;  // added to ours
  std::string working_directory;                   // empty: ours
  // Descriptors of ours that become 0, 1 and 2. -1: /dev/null for input, ours for output.
  int stdin_fd = -1;
  int stdout_fd = -1;
  int stderr_fd = -1;
  bool new_session = false;  // setsid(2): no controlling terminal, own process group
};

// A child of this process. Dies (SIGKILL, by pidfd) with the object, unless released or reaped. No
// descriptor of ours beyond 2 reaches it: those that lack O_CLOEXEC are closed too.
class ChildProcess {
 public:
  // Returns once the program is executing. Errors: from the step that failed in the child (chdir,
  // execvp: NotFound where the program is missing) or from clone.
  static absl::StatusOr<ChildProcess> Start(const StartOptions& options);

  ChildProcess(ChildProcess&&) noexcept = default;
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  ~ChildProcess();

  pid_t pid() const { return pid_; }
  int pidfd() const { return pidfd_.get(); }

  // FailedPrecondition once it has been reaped.
  absl::Status Signal(int number);
  // Waits for the end and reaps. DeadlineExceeded: it runs on and may be waited for again. May be
  // called again afterwards and gives the same answer.
  absl::StatusOr<ExitStatus> Wait(absl::Duration deadline);
  // SIGTERM, then Wait().
  absl::StatusOr<ExitStatus> Terminate(absl::Duration deadline);
  // The child is not ours to kill any more (it stays our child).
  pid_t Release();

 private:
  ChildProcess(pid_t pid, base::UniqueFd pidfd) : pid_(pid), pidfd_(std::move(pidfd)) {}
  void KillAndReap();

  pid_t pid_ = -1;
  base::UniqueFd pidfd_;
  std::optional<ExitStatus> exit_;
};

struct CommandResult {
  ExitStatus exit;
  std::string output;  // standard output
  std::string errors;  // standard error
};

// Runs a command to its end, input empty. DeadlineExceeded: it was killed, the message has its
// output so far. A non-zero exit is a result, not an error.
absl::StatusOr<CommandResult> RunCommand(const std::vector<std::string>& argv,
                                         absl::Duration deadline = absl::Seconds(30));
// The same with more to say; stdout_fd and stderr_fd are RunCommand's own.
absl::StatusOr<CommandResult> RunCommand(StartOptions options, absl::Duration deadline);

// Waits until the process behind `pidfd` (also one that is not our child) has ended.
// DeadlineExceeded if it has not.
absl::Status WaitForEnd(int pidfd, absl::Duration deadline);

}  // namespace predump::test_support

#endif  // PREDUMP_TESTS_SUPPORT_CHILD_PROCESS_H_
