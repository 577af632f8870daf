// Tries something that the calling process could not take back.
#ifndef PREDUMP_RESTORE_TRY_IN_CHILD_H_
#define PREDUMP_RESTORE_TRY_IN_CHILD_H_

#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "absl/status/statusor.h"
#include "src/base/errors.h"

namespace predump::restore::internal {

// Runs `attempt` in a child that ends with it: 0 where it returned true, else errno as it left it.
template <typename Attempt>
absl::StatusOr<int> TryInChild(const Attempt& attempt) {
  const pid_t child = ::fork();
  if (child < 0) return base::ErrnoError(errno, "fork");
  if (child == 0) ::_exit(attempt() ? 0 : errno);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return base::ErrnoError(errno, "waitpid");
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
}

}  // namespace predump::restore::internal

#endif  // PREDUMP_RESTORE_TRY_IN_CHILD_H_
