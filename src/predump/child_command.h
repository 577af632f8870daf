// A command that runs beside us: its standard streams, what it says, and its end.
//
// Thread rule: one thread at a time, but for last_words.
#ifndef PREDUMP_PREDUMP_CHILD_COMMAND_H_
#define PREDUMP_PREDUMP_CHILD_COMMAND_H_

#include <sys/types.h>

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "src/base/unique_fd.h"

namespace predump {

struct ChildExit {
  int status = 0;           // of waitpid(2)
  bool was_killed = false;  // by us, because it did not end
};

struct ChildOptions {
  std::vector<std::string> arguments;  // the first is looked for as a shell does
  // Where its standard input and output come from and go to.
  base::UniqueFd input;
  base::UniqueFd output;
  // Away from our terminal; it ends by itself once its input has. Otherwise it is ended with the
  // thread that starts it, and may ask questions there; but Ctrl-C is not for it: we are told as
  // well, and end it when it is time.
  bool own_session = false;
};

class ChildCommand {
 public:
  // Errors: NotFound there is no such command; otherwise from errno.
  static absl::StatusOr<std::unique_ptr<ChildCommand>> Start(ChildOptions options);
  // Kills it where it still runs.
  ~ChildCommand();
  ChildCommand(const ChildCommand&) = delete;
  ChildCommand& operator=(const ChildCommand&) = delete;

  // Lines it writes to standard error go to the log from now on; before, they are only kept.
  void LogLines();
  // The last lines it wrote there, in their order.
  std::vector<std::string> last_words() const;

  // Waits for its end for `patience`, then sees to it. All it wrote has been read by then.
  ChildExit End(absl::Duration patience);

 private:
  ChildCommand(pid_t pid, base::UniqueFd pidfd, base::UniqueFd errors, base::UniqueFd enough);
  void ReadErrors();
  void TakeLine(std::string line);
  bool WaitForExit(absl::Duration patience) const;

  const pid_t pid_;
  base::UniqueFd pidfd_;
  base::UniqueFd errors_;
  base::UniqueFd enough_;  // tells the reader that nothing more will come
  std::optional<ChildExit> exit_;
  mutable absl::Mutex mutex_;
  std::deque<std::string> lines_ ABSL_GUARDED_BY(mutex_);
  bool logs_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread reader_;
};

}  // namespace predump

#endif  // PREDUMP_PREDUMP_CHILD_COMMAND_H_
