#include "src/base/atomic_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/base/unique_fd.h"

namespace predump::base {
namespace {

absl::Status WriteAll(int fd, absl::string_view contents, const std::string& path) {
  while (!contents.empty()) {
    const ssize_t n = ::write(fd, contents.data(), contents.size());
    if (n < 0) {
      if (errno == EINTR) continue;
      return ErrnoError(errno, "write ", path);
    }
    if (n == 0) return absl::DataLossError(absl::StrCat("write ", path, " made no progress"));
    contents.remove_prefix(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status WriteFileAtomically(const std::string& path, absl::string_view contents,
                                 Durability durability) {
  const std::string aside = absl::StrCat(path, ".", ::getpid(), ".tmp");
  UniqueFd fd(::open(aside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return ErrnoError(errno, "open ", aside);
  absl::Status status = WriteAll(fd.get(), contents, aside);
  if (status.ok() && durability == Durability::kPowerLoss && ::fsync(fd.get()) != 0)
    status = ErrnoError(errno, "fsync ", aside);
  if (status.ok()) status = fd.Close();
  if (status.ok() && ::rename(aside.c_str(), path.c_str()) != 0) {
    status = ErrnoError(errno, "rename ", aside, " to ", path);
  }
  if (!status.ok()) ::unlink(aside.c_str());
  return status;
}

absl::StatusOr<std::string> ReadWholeFile(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoError(errno, "open ", path);
  std::string contents;
  char buffer[16384];
  for (;;) {
    const ssize_t n = ::read(fd.get(), buffer, sizeof buffer);
    if (n < 0) {
      if (errno == EINTR) continue;
      return ErrnoError(errno, "read ", path);
    }
    if (n == 0) return contents;
    contents.append(buffer, static_cast<size_t>(n));
  }
}

absl::Status MakePrivateDirectory(const std::string& path) {
  for (size_t slash = path.find('/', 1); slash != std::string::npos;
       slash = path.find('/', slash + 1)) {
    const std::string parent = path.substr(0, slash);
    if (::mkdir(parent.c_str(), 0755) != 0 && errno != EEXIST) {
      return ErrnoError(errno, "mkdir ", parent);
    }
  }
  if (::mkdir(path.c_str(), 0700) == 0) return absl::OkStatus();
  if (errno != EEXIST) return ErrnoError(errno, "mkdir ", path);
  struct stat st;
  if (::lstat(path.c_str(), &st) != 0) return ErrnoError(errno, "lstat ", path);
  if (!S_ISDIR(st.st_mode) || st.st_uid != ::geteuid() || (st.st_mode & 0022) != 0) {
    return absl::PermissionDeniedError(
        absl::StrCat(path, " must be a directory of ours that nobody else can write to"));
  }
  return absl::OkStatus();
}

}  // namespace predump::base
