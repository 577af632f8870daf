#include "src/images/image_store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "src/base/errors.h"

namespace predump::images {
namespace {

constexpr char kLatest[] = "latest";
constexpr char kNextLatest[] = ".latest.new";
constexpr char kLock[] = ".lock";
constexpr char kParent[] = "parent";
constexpr absl::string_view kPartialSuffix = ".partial";

// The number of a directory of a store: 1, 2, ... without leading zeros.
std::optional<uint64_t> NumberOf(absl::string_view name) {
  uint64_t number = 0;
  if (name.empty() || name[0] < '1' || name[0] > '9' || !absl::SimpleAtoi(name, &number)) {
    return std::nullopt;
  }
  return absl::StrCat(number) == name ? std::optional(number) : std::nullopt;
}

bool IsPartialName(absl::string_view name) {
  return absl::ConsumePrefix(&name, ".") && absl::ConsumeSuffix(&name, kPartialSuffix) &&
         NumberOf(name).has_value();
}

std::string PartialName(absl::string_view number) {
  return absl::StrCat(".", number, kPartialSuffix);
}

// `flags`: further ones of openat(2).
absl::StatusOr<base::UniqueFd> OpenDirectory(int at, const std::string& name,
                                             const std::string& path, int flags = 0) {
  base::UniqueFd fd(::openat(at, name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | flags));
  if (!fd.valid()) return base::ErrnoError(errno, "open ", path);
  return fd;
}

// Names in a directory, without `.` and `..`.
absl::StatusOr<std::vector<std::string>> List(int directory_fd, const std::string& path) {
  PREDUMP_ASSIGN_OR_RETURN(base::UniqueFd copy, OpenDirectory(directory_fd, ".", path));
  DIR* directory = ::fdopendir(copy.get());
  if (directory == nullptr) return base::ErrnoError(errno, "read ", path);
  (void)copy.Release();  // closedir closes it
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* entry = ::readdir(directory)) {
    const absl::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
    errno = 0;
  }
  const int error = errno;
  ::closedir(directory);
  if (error != 0) return base::ErrnoError(error, "read ", path);
  return names;
}

bool IsImageName(absl::string_view name) {
  return name == "inventory.img" ||
         (absl::StartsWith(name, "pagemap-") && absl::EndsWith(name, ".img"));
}

bool HoldsImages(const std::vector<std::string>& names) {
  return std::any_of(names.begin(), names.end(), IsImageName);
}

bool Contains(const std::vector<std::string>& names, absl::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// What `latest` says: the name of a directory beside it. NotFound: there is no such link.
absl::StatusOr<std::string> ReadLatest(int store_fd, const std::string& path) {
  char target[64];
  const ssize_t n = ::readlinkat(store_fd, kLatest, target, sizeof target);
  if (n < 0 && errno == ENOENT) {
    return absl::NotFoundError(absl::StrCat(path, " holds no whole image directory yet"));
  }
  if (n < 0 && errno != EINVAL) return base::ErrnoError(errno, "readlink ", path, "/", kLatest);
  const std::string name = n < 0 ? "" : std::string(target, static_cast<size_t>(n));
  if (!NumberOf(name).has_value()) {
    return absl::DataLossError(
        absl::StrCat(path, "/", kLatest, " is not a link that predump made: remove it"));
  }
  return name;
}

absl::StatusOr<base::UniqueFd> OpenLatestOf(int store_fd, const std::string& path) {
  PREDUMP_ASSIGN_OR_RETURN(const std::string name, ReadLatest(store_fd, path));
  absl::StatusOr<base::UniqueFd> fd = OpenDirectory(store_fd, name, absl::StrCat(path, "/", name));
  if (absl::IsNotFound(fd.status())) {
    return absl::DataLossError(absl::StrCat(path, "/", kLatest, " leads to ", name,
                                            ", which is not there: remove the link, or let it lead "
                                            "to a directory that is"));
  }
  return fd;
}

// Removes `name` with all in it, as rm -r does: links are not followed.
absl::Status RemoveTree(int at, const std::string& name, const std::string& path) {
  if (::unlinkat(at, name.c_str(), 0) == 0 || errno == ENOENT) return absl::OkStatus();
  if (errno != EISDIR) return base::ErrnoError(errno, "remove ", path);
  {
    // Not even where a link took its place just now.
    PREDUMP_ASSIGN_OR_RETURN(const base::UniqueFd fd, OpenDirectory(at, name, path, O_NOFOLLOW));
    PREDUMP_ASSIGN_OR_RETURN(const std::vector<std::string> names, List(fd.get(), path));
    for (const std::string& inner : names) {
      PREDUMP_RETURN_IF_ERROR(RemoveTree(fd.get(), inner, absl::StrCat(path, "/", inner)));
    }
  }
  if (::unlinkat(at, name.c_str(), AT_REMOVEDIR) != 0) {
    return base::ErrnoError(errno, "remove ", path);
  }
  return absl::OkStatus();
}

absl::Status SyncFd(int fd, absl::string_view path) {
  if (::fsync(fd) != 0) return base::ErrnoError(errno, "fsync ", path);
  return absl::OkStatus();
}

// Within one directory, which is locked; nothing is at `to`.
int RenameToNew(int directory_fd, const std::string& from, const std::string& to) {
  if (::renameat2(directory_fd, from.c_str(), directory_fd, to.c_str(), RENAME_NOREPLACE) == 0) {
    return 0;
  }
  // Most network file systems know no flags. Whoever heeds the lock makes nothing in between, and
  // a directory replaces no other unless that is empty.
  if (errno != EINVAL && errno != ENOSYS) return -1;
  struct stat there;
  if (::fstatat(directory_fd, to.c_str(), &there, AT_SYMLINK_NOFOLLOW) == 0) errno = EEXIST;
  if (errno != ENOENT) return -1;
  return ::renameat(directory_fd, from.c_str(), directory_fd, to.c_str());
}

// Lets `latest` lead to `number`, a whole directory whose name is perhaps not yet on disk.
absl::Status PointLatest(int store_fd, const std::string& store_path, const std::string& number) {
  PREDUMP_RETURN_IF_ERROR(SyncFd(store_fd, store_path));
  const std::string link = absl::StrCat(store_path, "/", kNextLatest);
  if (::unlinkat(store_fd, kNextLatest, 0) != 0 && errno != ENOENT) {
    return base::ErrnoError(errno, "unlink ", link);
  }
  if (::symlinkat(number.c_str(), store_fd, kNextLatest) != 0) {
    return base::ErrnoError(errno, "symlink ", link);
  }
  if (::renameat(store_fd, kNextLatest, store_fd, kLatest) != 0) {
    return base::ErrnoError(errno, "rename ", link, " to ", kLatest);
  }
  return SyncFd(store_fd, store_path);
}

absl::StatusOr<base::UniqueFd> OpenLockFile(int store_fd, const std::string& path) {
  base::UniqueFd lock(::openat(store_fd, kLock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock.valid()) return base::ErrnoError(errno, "open ", path, "/", kLock);
  return lock;
}

}  // namespace

absl::StatusOr<base::UniqueFd> OpenImageDirectory(const std::string& path) {
  PREDUMP_ASSIGN_OR_RETURN(base::UniqueFd fd, OpenDirectory(AT_FDCWD, path, path));
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<std::string> names, List(fd.get(), path));
  if (HoldsImages(names)) return fd;
  if (Contains(names, kLatest)) return OpenLatestOf(fd.get(), path);
  if (Contains(names, kLock)) {
    return absl::NotFoundError(absl::StrCat(path, " holds no whole image directory yet"));
  }
  return absl::NotFoundError(
      absl::StrCat(path,
                   " is no image directory (neither inventory.img nor pagemap-*.img is in "
                   "it), and no store of such (no `latest`)"));
}

absl::StatusOr<base::UniqueFd> OpenParent(int directory_fd) {
  base::UniqueFd fd(::openat(directory_fd, kParent, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.valid()) return fd;
  const int error = errno;
  struct stat stat;
  if (error == ENOENT && ::fstatat(directory_fd, kParent, &stat, AT_SYMLINK_NOFOLLOW) != 0 &&
      errno == ENOENT) {
    return absl::NotFoundError("there is no `parent`");
  }
  switch (error) {
    case ENOENT:
      return absl::DataLossError("`parent` leads to a directory that is not there");
    case ENOTDIR:
      return absl::DataLossError("`parent` leads to something that is no directory");
    case ELOOP:
      return absl::DataLossError("`parent` is a link that leads round in a circle");
    default:
      return base::ErrnoError(error, "open `parent`");
  }
}

PartialDirectory::PartialDirectory(PartialDirectory&& other) noexcept
    : store_path_(std::move(other.store_path_)),
      store_fd_(std::move(other.store_fd_)),
      lock_(std::move(other.lock_)),
      fd_(std::move(other.fd_)),
      number_(std::exchange(other.number_, "")),
      has_parent_(other.has_parent_),
      published_(other.published_) {}

PartialDirectory& PartialDirectory::operator=(PartialDirectory&& other) noexcept {
  if (this != &other) {
    Discard();
    store_path_ = std::move(other.store_path_);
    store_fd_ = std::move(other.store_fd_);
    lock_ = std::move(other.lock_);
    fd_ = std::move(other.fd_);
    number_ = std::exchange(other.number_, "");
    has_parent_ = other.has_parent_;
    published_ = other.published_;
  }
  return *this;
}

PartialDirectory::~PartialDirectory() { Discard(); }

void PartialDirectory::Discard() {
  if (number_.empty() || published_) return;
  // What cannot be removed now is removed by the next Begin.
  RemoveTree(store_fd_.get(), PartialName(number_), partial_path()).IgnoreError();
  number_.clear();
}

std::string PartialDirectory::final_path() const { return absl::StrCat(store_path_, "/", number_); }

std::string PartialDirectory::partial_path() const {
  return absl::StrCat(store_path_, "/", PartialName(number_));
}

absl::Status PartialDirectory::Sync() {
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<std::string> names, List(fd_.get(), partial_path()));
  // fsync of each: syncfs would also wait for whatever others write to that disk.
  for (const std::string& name : names) {
    const std::string path = absl::StrCat(partial_path(), "/", name);
    const base::UniqueFd file(
        ::openat(fd_.get(), name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (!file.valid()) {
      if (errno == ELOOP) continue;  // `parent`: on disk with the directory
      return base::ErrnoError(errno, "open ", path);
    }
    PREDUMP_RETURN_IF_ERROR(SyncFd(file.get(), path));
  }
  return SyncFd(fd_.get(), partial_path());
}

absl::Status PartialDirectory::Publish() {
  PREDUMP_RETURN_IF_ERROR(PublishLocked());
  lock_ = base::UniqueFd();
  return absl::OkStatus();
}

absl::Status PartialDirectory::PublishLocked() {
  PREDUMP_RETURN_IF_ERROR(Sync());
  if (RenameToNew(store_fd_.get(), PartialName(number_), number_) != 0) {
    return base::ErrnoError(errno, "rename ", partial_path(), " to ", final_path());
  }
  published_ = true;
  const absl::Status pointed = PointLatest(store_fd_.get(), store_path_, number_);
  if (pointed.ok()) return pointed;
  lock_ = base::UniqueFd();  // for FinishPublishing
  return base::Annotate(pointed, absl::StrCat(final_path(), " is whole, but ", store_path_, "/",
                                              kLatest, " may not lead there"));
}

absl::StatusOr<ImageStore> ImageStore::Open(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return base::ErrnoError(errno, "mkdir ", path);
  }
  PREDUMP_ASSIGN_OR_RETURN(const base::UniqueFd fd, OpenDirectory(AT_FDCWD, path, path));
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<std::string> names, List(fd.get(), path));
  if (HoldsImages(names)) {
    return absl::FailedPreconditionError(
        absl::StrCat(path,
                     " is an image directory itself; name a new directory, or the one that "
                     "is to hold such"));
  }
  const bool is_empty = std::all_of(names.begin(), names.end(),
                                    [](const auto& name) { return name == "lost+found"; });
  const bool is_store = Contains(names, kLock) || ReadLatest(fd.get(), path).ok();
  if (!is_empty && !is_store) {
    return absl::FailedPreconditionError(absl::StrCat(path, " holds other things (", names.front(),
                                                      "); name a new or an empty directory"));
  }
  PREDUMP_RETURN_IF_ERROR(OpenLockFile(fd.get(), path).status());
  return ImageStore(path);
}

absl::StatusOr<base::UniqueFd> ImageStore::OpenLatest() const {
  PREDUMP_ASSIGN_OR_RETURN(const base::UniqueFd fd, OpenDirectory(AT_FDCWD, path_, path_));
  return OpenLatestOf(fd.get(), path_);
}

absl::StatusOr<PartialDirectory> ImageStore::Begin(bool with_parent,
                                                   BeforeTidying before_tidying) const {
  PREDUMP_ASSIGN_OR_RETURN(PartialDirectory partial, BeginLocked(base::UniqueFd(), before_tidying));
  if (!with_parent) return partial;
  const absl::StatusOr<std::string> latest = ReadLatest(partial.store_fd_.get(), path_);
  if (absl::IsNotFound(latest.status())) return partial;
  PREDUMP_RETURN_IF_ERROR(latest.status());
  PREDUMP_RETURN_IF_ERROR(OpenLatestOf(partial.store_fd_.get(), path_).status());
  PREDUMP_RETURN_IF_ERROR(partial.LinkParent(*latest));
  return partial;
}

absl::StatusOr<PartialDirectory> ImageStore::BeginAfter(const std::string& parent) const {
  PREDUMP_ASSIGN_OR_RETURN(PartialDirectory partial, BeginLocked(base::UniqueFd()));
  if (!parent.empty()) PREDUMP_RETURN_IF_ERROR(partial.LinkParent(parent));
  return partial;
}

absl::Status PartialDirectory::LinkParent(const std::string& number) {
  PREDUMP_RETURN_IF_ERROR(
      OpenDirectory(store_fd_.get(), number, absl::StrCat(store_path_, "/", number)).status());
  if (::symlinkat(absl::StrCat("../", number).c_str(), fd_.get(), kParent) != 0) {
    return base::ErrnoError(errno, "symlink ", partial_path(), "/", kParent);
  }
  has_parent_ = true;
  return absl::OkStatus();
}

absl::StatusOr<PartialDirectory> ImageStore::PublishAndBegin(PartialDirectory& whole) const {
  PREDUMP_RETURN_IF_ERROR(whole.PublishLocked());
  PREDUMP_ASSIGN_OR_RETURN(PartialDirectory next, BeginLocked(std::move(whole.lock_)));
  PREDUMP_RETURN_IF_ERROR(next.LinkParent(whole.number()));
  return next;
}

absl::Status LockedStore::FinishPublishing(const std::string& number) const {
  const absl::StatusOr<std::string> latest = ReadLatest(store_fd_, path_);
  if (latest.ok() && NumberOf(*latest).value_or(0) >= NumberOf(number).value_or(0)) {
    return absl::OkStatus();
  }
  return PointLatest(store_fd_, path_, number);
}

bool LockedStore::IsAt(const std::string& path) const {
  struct stat ours;
  struct stat other;
  return ::fstat(store_fd_, &ours) == 0 && ::stat(path.c_str(), &other) == 0 &&
         ours.st_dev == other.st_dev && ours.st_ino == other.st_ino;
}

absl::Status ImageStore::FinishPublishing(const std::string& number) const {
  PREDUMP_ASSIGN_OR_RETURN(const base::UniqueFd fd, OpenDirectory(AT_FDCWD, path_, path_));
  PREDUMP_ASSIGN_OR_RETURN(const base::UniqueFd lock, Lock(fd.get()));
  return LockedStore(path_, fd.get()).FinishPublishing(number);
}

absl::StatusOr<base::UniqueFd> ImageStore::Lock(int store_fd) const {
  PREDUMP_ASSIGN_OR_RETURN(base::UniqueFd lock, OpenLockFile(store_fd, path_));
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return base::ErrnoError(errno, "flock ", path_, "/", kLock);
    return absl::UnavailableError(
        absl::StrCat("somebody else is writing to ", path_, " just now; wait, or name another"));
  }
  return lock;
}

absl::StatusOr<PartialDirectory> ImageStore::BeginLocked(base::UniqueFd lock,
                                                         BeforeTidying before_tidying) const {
  PartialDirectory partial;
  partial.store_path_ = path_;
  PREDUMP_ASSIGN_OR_RETURN(partial.store_fd_, OpenDirectory(AT_FDCWD, path_, path_));
  const int store_fd = partial.store_fd_.get();
  if (!lock.valid()) {
    PREDUMP_ASSIGN_OR_RETURN(lock, Lock(store_fd));
  }
  partial.lock_ = std::move(lock);
  before_tidying(LockedStore(path_, store_fd));
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<std::string> names, List(store_fd, path_));
  uint64_t last = 0;
  for (const std::string& name : names) {
    if (IsPartialName(name)) {
      // Its writer is gone: we have the lock.
      PREDUMP_RETURN_IF_ERROR(RemoveTree(store_fd, name, absl::StrCat(path_, "/", name)));
    }
    last = std::max(last, NumberOf(name == kLatest ? "" : name).value_or(0));
  }
  const absl::StatusOr<std::string> latest = ReadLatest(store_fd, path_);
  if (latest.ok()) last = std::max(last, NumberOf(*latest).value_or(0));
  if (last == std::numeric_limits<uint64_t>::max()) {
    return absl::ResourceExhaustedError(
        absl::StrCat(path_, " has a directory with the highest number there is; name another"));
  }
  const std::string number = absl::StrCat(last + 1);
  const std::string name = PartialName(number);
  if (::mkdirat(store_fd, name.c_str(), 0700) != 0) {
    return base::ErrnoError(errno, "mkdir ", path_, "/", name);
  }
  partial.number_ = number;  // from here on it is removed with the object
  PREDUMP_ASSIGN_OR_RETURN(partial.fd_,
                           OpenDirectory(store_fd, name, partial.partial_path(), O_NOFOLLOW));
  return partial;
}

}  // namespace predump::images
