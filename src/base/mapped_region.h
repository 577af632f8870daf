// Ownership of one mapping of our own address space.
#ifndef PREDUMP_BASE_MAPPED_REGION_H_
#define PREDUMP_BASE_MAPPED_REGION_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "absl/status/statusor.h"

namespace predump::base {

// Owns [data, data + size) and unmaps it. Sizes are bytes.
class MappedRegion {
 public:
  MappedRegion() noexcept = default;
  MappedRegion(MappedRegion&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  MappedRegion& operator=(MappedRegion&& other) noexcept;
  MappedRegion(const MappedRegion&) = delete;
  MappedRegion& operator=(const MappedRegion&) = delete;
  ~MappedRegion();

  // Private, zeroed, readable and writable; `populate` faults it in now. Errors: mmap(2).
  static absl::StatusOr<MappedRegion> Anonymous(size_t size, bool populate = false);
  // Shared mapping of `fd` from `offset`. `prot` as for mmap(2).
  static absl::StatusOr<MappedRegion> Shared(int fd, uint64_t offset, size_t size, int prot);

  std::byte* data() const { return static_cast<std::byte*>(data_); }
  size_t size() const { return size_; }
  std::span<std::byte> bytes() const { return {data(), size_}; }

 private:
  MappedRegion(void* data, size_t size) : data_(data), size_(size) {}

  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace predump::base

#endif  // PREDUMP_BASE_MAPPED_REGION_H_
