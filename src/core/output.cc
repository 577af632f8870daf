#include "src/core/output.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/base/unique_fd.h"
#include "src/core/file_output.h"
#include "src/core/stream_output.h"

namespace predump::core {
namespace {

absl::Status CheckStream(int fd, const std::string& name) {
  if (::isatty(fd) == 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is a terminal: send the core to a file or a pipe"));
  }
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0) return base::ErrnoError(errno, "look at ", name);
  if ((flags & O_APPEND) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is open for appending: a core file cannot follow other bytes"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Output>> OpenStandardOutput(int cancel_fd) {
  const std::string name = "standard output";
  PREDUMP_RETURN_IF_ERROR(CheckStream(STDOUT_FILENO, name));
  base::UniqueFd fd(::fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 0));
  if (!fd.valid()) return base::ErrnoError(errno, "duplicate ", name);
  return StreamOutput::Create(std::move(fd), name, cancel_fd);
}

absl::StatusOr<std::unique_ptr<Output>> OpenSpecialFile(const std::string& path, int cancel_fd) {
  // A pipe without a reader must not keep us waiting.
  base::UniqueFd fd(::open(path.c_str(), O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
  if (!fd.valid() && errno == ENXIO) {
    return absl::FailedPreconditionError(
        absl::StrCat("nobody reads from ", path, ": start the reader first"));
  }
  if (!fd.valid()) return base::ErrnoError(errno, "open ", path);
  PREDUMP_RETURN_IF_ERROR(CheckStream(fd.get(), path));
  return StreamOutput::Create(std::move(fd), path, cancel_fd);
}

}  // namespace

bool IsCancelled(int cancel_fd) {
  struct pollfd poll_fd = {cancel_fd, POLLIN, 0};
  return cancel_fd >= 0 && ::poll(&poll_fd, 1, 0) > 0;
}

absl::StatusOr<std::unique_ptr<Output>> OpenOutput(const std::string& path, int cancel_fd) {
  if (path == "-") return OpenStandardOutput(cancel_fd);
  struct stat itself;
  struct stat info;
  if (::lstat(path.c_str(), &itself) != 0) {
    // Of any other kind than "not there yet": the way to it is what fails below.
    return FileOutput::Create(path);
  }
  const bool is_link = S_ISLNK(itself.st_mode);
  const bool leads_somewhere = ::stat(path.c_str(), &info) == 0;
  if (leads_somewhere && S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is a directory: name a file in it"));
  }
  if (leads_somewhere && (S_ISFIFO(info.st_mode) || S_ISCHR(info.st_mode))) {
    return OpenSpecialFile(path, cancel_fd);
  }
  if (is_link) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is a symbolic link: name the file itself, or - for standard output"));
  }
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is neither a file nor a pipe: name another file"));
  }
  return FileOutput::Create(path);
}

}  // namespace predump::core
