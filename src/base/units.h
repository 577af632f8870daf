// Strong types for what a plain integer would let slip: counts of pages, counts of bytes,
// addresses in another process, and ranges of them.
//
// Invariant: an AddressRange is half-open, start <= end; Create() is the only way to one from raw
// numbers that may be wrong. Thread rule: values.
#ifndef PREDUMP_BASE_UNITS_H_
#define PREDUMP_BASE_UNITS_H_

#include <compare>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace predump::base {

// The page size of this machine in bytes (getpagesize(2)).
uint64_t PageSize();

namespace internal {

// A 64-bit count that mixes with no other count. `Tag` names the unit.
template <typename Tag>
class Count {
 public:
  constexpr Count() = default;
  constexpr explicit Count(uint64_t value) : value_(value) {}
  constexpr uint64_t value() const { return value_; }

  constexpr Count& operator+=(Count other) {
    value_ += other.value_;
    return *this;
  }
  constexpr Count& operator-=(Count other) {
    value_ -= other.value_;
    return *this;
  }
  friend constexpr Count operator+(Count a, Count b) { return Count(a.value_ + b.value_); }
  friend constexpr Count operator-(Count a, Count b) { return Count(a.value_ - b.value_); }
  // Of what the compiler makes of it clang-tidy 14 says that it compares with 0.
  friend constexpr auto operator<=>(Count a, Count b) = default;  // NOLINT(modernize-use-nullptr)

 private:
  uint64_t value_ = 0;
};

}  // namespace internal

using ByteCount = internal::Count<struct ByteTag>;
using PageCount = internal::Count<struct PageTag>;

inline ByteCount ToBytes(PageCount pages) { return ByteCount(pages.value() * PageSize()); }
// Rounds down.
inline PageCount ToPages(ByteCount bytes) { return PageCount(bytes.value() / PageSize()); }

// An address in the memory of another process; never our own pointer.
class RemoteAddress {
 public:
  constexpr RemoteAddress() = default;
  constexpr explicit RemoteAddress(uint64_t value) : value_(value) {}
  constexpr uint64_t value() const { return value_; }

  friend constexpr RemoteAddress operator+(RemoteAddress a, ByteCount n) {
    return RemoteAddress(a.value_ + n.value());
  }
  friend constexpr ByteCount operator-(RemoteAddress a, RemoteAddress b) {
    return ByteCount(a.value_ - b.value_);
  }
  // NOLINTNEXTLINE(modernize-use-nullptr): clang-tidy 14 takes its comparison's 0 for a pointer.
  friend constexpr auto operator<=>(RemoteAddress a, RemoteAddress b) = default;

 private:
  uint64_t value_ = 0;
};

// [start, end) in another process.
class AddressRange {
 public:
  constexpr AddressRange() = default;

  // InvalidArgument unless start <= end.
  static absl::StatusOr<AddressRange> Create(uint64_t start, uint64_t end);
  // For ends known to be in order (parsed by the kernel, cut from another range).
  static constexpr AddressRange FromOrdered(uint64_t start, uint64_t end) {
    AddressRange range;
    range.start_ = RemoteAddress(start);
    range.end_ = RemoteAddress(end);
    return range;
  }

  constexpr RemoteAddress start() const { return start_; }
  constexpr RemoteAddress end() const { return end_; }
  constexpr ByteCount size() const { return end_ - start_; }
  PageCount pages() const { return ToPages(size()); }
  constexpr bool empty() const { return start_ == end_; }
  constexpr bool Contains(RemoteAddress a) const { return start_ <= a && a < end_; }
  constexpr bool Contains(AddressRange r) const { return start_ <= r.start_ && r.end_ <= end_; }
  constexpr bool Overlaps(AddressRange r) const { return start_ < r.end_ && r.start_ < end_; }
  // The common part; empty (at this range's start) where there is none.
  constexpr AddressRange Intersect(AddressRange r) const {
    const uint64_t s = start_ > r.start_ ? start_.value() : r.start_.value();
    const uint64_t e = end_ < r.end_ ? end_.value() : r.end_.value();
    return s < e ? FromOrdered(s, e) : FromOrdered(start_.value(), start_.value());
  }

  friend constexpr auto operator<=>(const AddressRange& a, const AddressRange& b) = default;

  // "7f00-8f00", as /proc/PID/maps writes it.
  std::string ToString() const;

 private:
  RemoteAddress start_;
  RemoteAddress end_;
};

}  // namespace predump::base

#endif  // PREDUMP_BASE_UNITS_H_
