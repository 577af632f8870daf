// Ctrl-C, SIGTERM and the time limit, turned into one request to cancel.
#ifndef PREDUMP_CLI_SIGNALS_H_
#define PREDUMP_CLI_SIGNALS_H_

#include <functional>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "src/base/unique_fd.h"

namespace predump::cli {

// Blocks SIGINT, SIGTERM and SIGHUP in the calling thread (so: construct before any other thread is
// made) and waits for them in a thread of its own. `on_request` is called from there, with the
// reason, for each signal and once when `time_limit` has passed.
class SignalWatcher {
 public:
  static absl::StatusOr<std::unique_ptr<SignalWatcher>> Start(
      absl::Duration time_limit, std::function<void(const std::string& reason)> on_request);
  ~SignalWatcher();
  SignalWatcher(const SignalWatcher&) = delete;
  SignalWatcher& operator=(const SignalWatcher&) = delete;

 private:
  SignalWatcher() = default;
  void Run(absl::Duration time_limit);

  base::UniqueFd signals_;
  base::UniqueFd stop_;
  std::function<void(const std::string&)> on_request_;
  std::thread thread_;
};

}  // namespace predump::cli

#endif  // PREDUMP_CLI_SIGNALS_H_
