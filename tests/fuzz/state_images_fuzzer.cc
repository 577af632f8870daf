// A directory of images as anybody may have put it together: read, and a state that passes the
// check written and read again. The input is a list of files: one byte that picks the name, three
// of length (little-endian), and the bytes.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "src/base/unique_fd.h"
#include "src/images/directory_names.h"
#include "src/images/state_images.h"
#include "src/images/state_validation.h"

namespace predump::images {
namespace {

// Of process 4321 with threads 4321 and 4322 (rich_state.h), which has table 2 of descriptors.
constexpr const char* kNames[] = {
    "inventory.img", "pstree.img",     "core-4321.img",    "core-4322.img",
    "ids-4321.img",  "mm-4321.img",    "fs-4321.img",      "files.img",
    "fdinfo-2.img",  "pipes-data.img", "sk-queues.img",    "timens-0.img",
    "predump-extra", "seccomp.img",    "ghost-file-1.img", "pagemap-4321.img",
};

// On a tmpfs where there is one; emptied for every input.
class Directory {
 public:
  Directory() {
    std::string path = ::access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    path += "/state-images-fuzz-XXXXXX";
    if (::mkdtemp(path.data()) == nullptr) std::abort();
    path_ = path;
    fd_ = base::UniqueFd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!fd_.valid()) std::abort();
  }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;
  ~Directory() {
    Empty();
    ::rmdir(path_.c_str());
  }

  int fd() const { return fd_.get(); }

  void Empty() const {
    const auto names = ListNames(fd());
    if (!names.ok()) std::abort();
    for (const std::string& name : *names) ::unlinkat(fd(), name.c_str(), 0);
  }

  void Put(const char* name, const uint8_t* data, size_t size) const {
    const base::UniqueFd file(::openat(fd(), name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    if (::write(file.get(), data, size) != static_cast<ssize_t>(size)) std::abort();
  }

 private:
  std::string path_;
  base::UniqueFd fd_;
};

void WriteAndReadAgain(const Directory& directory, const StoredState& stored) {
  if (!stored.blockers.empty()) return;
  if (!ValidateState(stored.state, StateKind::kFull).ok()) return;
  directory.Empty();
  proto::StoredExtra extra = stored.extra.value_or(proto::StoredExtra());
  extra.set_version(kExtraVersion);
  if (!WriteState(directory.fd(), stored.state, extra).ok()) std::abort();
  const auto again = ReadState(directory.fd());
  if (!again.ok() || !ValidateState(again->state, StateKind::kFull).ok()) std::abort();
}

}  // namespace
}  // namespace predump::images

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using predump::images::kNames;
  static const predump::images::Directory directory;
  directory.Empty();
  while (size >= 4) {
    const char* name = kNames[data[0] % (sizeof kNames / sizeof kNames[0])];
    size_t length = data[1] | size_t{data[2]} << 8 | size_t{data[3]} << 16;
    data += 4;
    size -= 4;
    length = length < size ? length : size;
    directory.Put(name, data, length);
    data += length;
    size -= length;
  }
  if (const auto stored = predump::images::ReadState(directory.fd()); stored.ok()) {
    predump::images::WriteAndReadAgain(directory, *stored);
  }
  return 0;
}
