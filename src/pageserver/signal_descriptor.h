// The signals of a server, as something to wait for beside its sockets.
//
// Thread rule: for a program with one thread.
#ifndef PREDUMP_PAGESERVER_SIGNAL_DESCRIPTOR_H_
#define PREDUMP_PAGESERVER_SIGNAL_DESCRIPTOR_H_

#include <signal.h>

#include <utility>

#include "absl/status/statusor.h"
#include "src/base/unique_fd.h"

namespace predump::pageserver {

// Blocks SIGTERM, SIGINT and SIGCHLD for as long as it lives and gives them out through a
// descriptor.
class SignalDescriptor {
 public:
  static absl::StatusOr<SignalDescriptor> Create();
  SignalDescriptor(SignalDescriptor&& other) noexcept
      : before_(other.before_),
        blocked_(std::exchange(other.blocked_, false)),
        fd_(std::move(other.fd_)) {}
  SignalDescriptor(const SignalDescriptor&) = delete;
  SignalDescriptor& operator=(const SignalDescriptor&) = delete;
  ~SignalDescriptor();

  int fd() const { return fd_.get(); }

  // Whether the program was asked to end. SIGCHLD only wakes the caller.
  bool Drain();

 private:
  SignalDescriptor() = default;
  sigset_t before_ = {};
  bool blocked_ = false;
  base::UniqueFd fd_;
};

}  // namespace predump::pageserver

#endif  // PREDUMP_PAGESERVER_SIGNAL_DESCRIPTOR_H_
