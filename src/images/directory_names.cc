#include "src/images/directory_names.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"

namespace predump::images {
namespace {

constexpr size_t kMostNames = 1 << 20;

}  // namespace

absl::StatusOr<std::vector<std::string>> ListNames(int directory_fd) {
  const int fd = ::openat(directory_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return base::ErrnoError(errno, "open the directory of the images");
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(::fdopendir(fd), &::closedir);
  if (directory == nullptr) return base::ErrnoError(errno, "fdopendir");
  std::vector<std::string> names;
  while (true) {
    errno = 0;
    const dirent* entry = ::readdir(directory.get());
    if (entry == nullptr && errno != 0) {
      return base::ErrnoError(errno, "list the directory of the images");
    }
    if (entry == nullptr) break;
    if (names.size() == kMostNames) {
      return absl::ResourceExhaustedError("the directory of the images has too many files");
    }
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string PathOf(int directory_fd) {
  char path[PATH_MAX];
  const ssize_t length =
      ::readlink(absl::StrCat("/proc/self/fd/", directory_fd).c_str(), path, sizeof path);
  return length <= 0 ? std::string("?") : std::string(path, static_cast<size_t>(length));
}

}  // namespace predump::images
