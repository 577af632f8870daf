#include "src/pageserver/signal_descriptor.h"

#include <errno.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "src/base/errors.h"

namespace predump::pageserver {

absl::StatusOr<SignalDescriptor> SignalDescriptor::Create() {
  SignalDescriptor result;
  sigset_t set;
  ::sigemptyset(&set);
  for (const int signal_number : {SIGTERM, SIGINT, SIGCHLD}) ::sigaddset(&set, signal_number);
  if (::sigprocmask(SIG_BLOCK, &set, &result.before_) != 0) {
    return base::ErrnoError(errno, "sigprocmask");
  }
  result.blocked_ = true;
  result.fd_ = base::UniqueFd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!result.fd_.valid()) return base::ErrnoError(errno, "signalfd");
  return result;
}

SignalDescriptor::~SignalDescriptor() {
  if (blocked_) ::sigprocmask(SIG_SETMASK, &before_, nullptr);
}

bool SignalDescriptor::Drain() {
  bool end = false;
  signalfd_siginfo info;
  while (::read(fd_.get(), &info, sizeof info) == sizeof info) {
    end = end || info.ssi_signo != SIGCHLD;
  }
  return end;
}

}  // namespace predump::pageserver
