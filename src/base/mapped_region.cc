#include "src/base/mapped_region.h"

#include <errno.h>
#include <sys/mman.h>

#include "src/base/errors.h"

namespace predump::base {

MappedRegion& MappedRegion::operator=(MappedRegion&& other) noexcept {
  if (this != &other) {
    if (data_ != nullptr) ::munmap(data_, size_);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
  }
  return *this;
}

MappedRegion::~MappedRegion() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

absl::StatusOr<MappedRegion> MappedRegion::Anonymous(size_t size, bool populate) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (populate ? MAP_POPULATE : 0);
  void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (data == MAP_FAILED) return ErrnoError(errno, "mmap of ", size, " anonymous bytes");
  return MappedRegion(data, size);
}

absl::StatusOr<MappedRegion> MappedRegion::Shared(int fd, uint64_t offset, size_t size, int prot) {
  void* data = ::mmap(nullptr, size, prot, MAP_SHARED, fd, static_cast<off_t>(offset));
  if (data == MAP_FAILED) return ErrnoError(errno, "mmap of ", size, " shared bytes, fd ", fd);
  return MappedRegion(data, size);
}

}  // namespace predump::base
