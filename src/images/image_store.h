// A directory of image directories, one for each round or dump, in which nothing is half there.
//
//   STORE/1 STORE/2 ...   image directories as CRIU writes them; `parent` in each is a link to the
//                         one before (../1), where it builds on it
//   STORE/latest          a link to the last one that is whole
//   STORE/.N.partial      one that is being written; the next writer removes what was left
//
// I1: a directory gets its name only once all in it is on disk (fsync, then rename, then fsync of
//     STORE), and `latest` points to it only after that.
// I2: one writer at a time: the store is locked (flock on STORE/.lock) from Begin until the
//     PartialDirectory is published, or ends.
// Thread rule: an object belongs to one thread at a time; any number of processes.
#ifndef PREDUMP_IMAGES_IMAGE_STORE_H_
#define PREDUMP_IMAGES_IMAGE_STORE_H_

#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/base/unique_fd.h"

namespace predump::images {

// What a person names with --images-dir, for reading: an image directory (it has an inventory.img
// or a pagemap-*.img), or a store, which stands for its `latest`. NotFound for neither, saying what
// was expected.
absl::StatusOr<base::UniqueFd> OpenImageDirectory(const std::string& path);

// The directory that `parent` in `directory_fd` leads to. NotFound: it has none. DataLoss: the link
// dangles, or leads to something else than a directory.
absl::StatusOr<base::UniqueFd> OpenParent(int directory_fd);

// An image directory that is being written. Removed with all that is in it unless published.
class PartialDirectory {
 public:
  PartialDirectory(PartialDirectory&&) noexcept;
  PartialDirectory& operator=(PartialDirectory&&) noexcept;
  ~PartialDirectory();

  int fd() const { return fd_.get(); }
  bool has_parent() const { return has_parent_; }
  // N, for BeginAfter.
  const std::string& number() const { return number_; }
  // Where it will be once published: STORE/N.
  std::string final_path() const;
  // Where it is now: STORE/.N.partial.
  std::string partial_path() const;

  // Everything in it is on disk; nothing has a name yet. May be called early, so that Publish is
  // quick.
  absl::Status Sync();
  // Syncs what is not yet on disk, renames, lets `latest` point here, and lets the next writer in.
  // On an error nothing has the final name, or all of it is there and only `latest` is old; the
  // message says which.
  absl::Status Publish();

 private:
  friend class ImageStore;
  PartialDirectory() = default;
  absl::Status PublishLocked();
  absl::Status LinkParent(const std::string& number);
  void Discard();

  std::string store_path_;
  base::UniqueFd store_fd_;
  base::UniqueFd lock_;
  base::UniqueFd fd_;
  std::string number_;
  bool has_parent_ = false;
  bool published_ = false;
};

// A store that the caller has locked. Borrows; for the time of a call.
class LockedStore {
 public:
  // Whether `path` is this one.
  bool IsAt(const std::string& path) const;
  // As ImageStore's; nobody is at work here.
  absl::Status FinishPublishing(const std::string& number) const;

 private:
  friend class ImageStore;
  LockedStore(const std::string& path, int store_fd) : path_(path), store_fd_(store_fd) {}

  const std::string& path_;
  int store_fd_;
};

class ImageStore {
 public:
  // Called once the store is locked, before what a dead writer left is removed: for whoever can
  // still use it.
  using BeforeTidying = absl::FunctionRef<void(const LockedStore&)>;

  // Makes the directory (mode 0700: it holds memory of processes) where it is not there.
  // FailedPrecondition where it is an image directory itself, or otherwise not empty and no store.
  static absl::StatusOr<ImageStore> Open(const std::string& path);

  const std::string& path() const { return path_; }

  // The last whole one. NotFound: there is none.
  absl::StatusOr<base::UniqueFd> OpenLatest() const;

  // Starts the next one, with `parent` to the latest where `with_parent` is set and one is there.
  // Unavailable: another writer is at work in this store. Errors name the path; a full disk or a
  // read-only one is said as such.
  absl::StatusOr<PartialDirectory> Begin(
      bool with_parent, BeforeTidying before_tidying = [](const LockedStore&) {}) const;

  // The same with `parent` (a number(); empty: none), whatever others have published since.
  absl::StatusOr<PartialDirectory> BeginAfter(const std::string& parent) const;

  // Publishes `whole`, one of this store's, and starts the next one with `whole` as its parent; no
  // other writer comes in between. Errors: as Publish and Begin.
  absl::StatusOr<PartialDirectory> PublishAndBegin(PartialDirectory& whole) const;

  // For directory `number`, whose writer died before it was through with Publish, or failed: lets
  // `latest` lead there, unless it leads to a later one. Unavailable: a writer is at work.
  absl::Status FinishPublishing(const std::string& number) const;

 private:
  explicit ImageStore(std::string path) : path_(std::move(path)) {}
  absl::StatusOr<base::UniqueFd> Lock(int store_fd) const;
  // With `lock` if it is one, or a new one.
  absl::StatusOr<PartialDirectory> BeginLocked(
      base::UniqueFd lock, BeforeTidying before_tidying = [](const LockedStore&) {}) const;
  std::string path_;
};

}  // namespace predump::images

#endif  // PREDUMP_IMAGES_IMAGE_STORE_H_
