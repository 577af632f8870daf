#include "tests/workloads/churn_regions.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>

namespace predump::workloads {
namespace {

constexpr int kReadWrite = PROT_READ | PROT_WRITE;
constexpr int kAnonymous = MAP_PRIVATE | MAP_ANONYMOUS;
constexpr size_t kFilePages = 512;
constexpr uint64_t kFileSeed = 0xF11E;
constexpr size_t kNewcomerPages = 48;

template <typename T>
std::span<T> MapArray(size_t count) {
  const size_t pages = (count * sizeof(T) + kPageBytes - 1) / kPageBytes;
  return {static_cast<T*>(MapPages(pages)), count};
}

// A mapping of its own between two inaccessible pages: one that had merged with a neighbour in use
// could not merge with another any more.
std::byte* MapUntouched(size_t pages) {
  void* fenced = mmap(nullptr, (pages + 2) * kPageBytes, PROT_NONE, kAnonymous, -1, 0);
  Require(fenced != MAP_FAILED, "mmap");
  std::byte* start = static_cast<std::byte*>(fenced) + kPageBytes;
  Must(mprotect(start, pages * kPageBytes, kReadWrite), "mprotect");
  return start;
}

// Whether `address` lies inside a mapping that begins before it. Reads without allocating.
bool IsWithinOneMapping(const void* address) {
  const int fd = Must(open("/proc/self/maps", O_RDONLY | O_CLOEXEC), "/proc/self/maps");
  const auto wanted = reinterpret_cast<uintptr_t>(address);
  char buffer[4096];
  std::array<uintptr_t, 2> bounds = {};
  enum { kStart, kEnd, kRest } field = kStart;
  bool found = false;
  ssize_t size;
  while (!found && (size = read(fd, buffer, sizeof buffer)) > 0) {
    for (const char c : std::span(buffer, static_cast<size_t>(size))) {
      if (c == '\n') {
        field = kStart;
        bounds = {};
      } else if (field == kRest) {
        continue;
      } else if (c == '-') {
        field = kEnd;
      } else if (c == ' ') {
        field = kRest;
        found = found || (bounds[0] < wanted && wanted < bounds[1]);
      } else {
        const auto digit = static_cast<uintptr_t>(c <= '9' ? c - '0' : c - 'a' + 10);
        bounds[field] = bounds[field] << 4 | digit;
      }
    }
  }
  close(fd);
  return found;
}

}  // namespace

ChurnRegions::ChurnRegions(Workload& workload, const Settings& settings)
    : workload_(workload),
      settings_(settings),
      random_(workload.seed()),
      regions_(MapArray<Region>(settings.regions)),
      refused_(workload.AddCounter("mremap_refused")),
      maps_(workload.AddCounter("maps")),
      moves_(workload.AddCounter("moves")),
      merges_(workload.AddCounter("merges")),
      discards_(workload.AddCounter("discards")),
      protects_(workload.AddCounter("protects")) {
  file_ = Must(open(settings.file.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644),
               settings.file.c_str());
  std::array<std::byte, kPageBytes> page;
  for (size_t i = 0; i < kFilePages; ++i) {
    FillPage(page.data(), PageBase(kFileSeed, i, 0));
    Require(write(file_, page.data(), page.size()) == static_cast<ssize_t>(page.size()), "write");
  }
  const std::span<PageRecord> records =
      MapArray<PageRecord>(settings.regions * settings.most_pages);
  for (size_t i = 0; i < regions_.size(); ++i) {
    regions_[i].records = records.subspan(i * settings.most_pages, settings.most_pages);
  }
  MapAnonymous(regions_[0], settings.most_pages);
  for (size_t i = 0; i < regions_[0].pages; ++i) WritePage(regions_[0], i);
  newcomer_ = MapUntouched(kNewcomerPages);
}

uint64_t ChurnRegions::Base(const Region& region, size_t page) const {
  return PageBase(region.key, page, region.records[page].generation);
}

bool ChurnRegions::WritePage(Region& region, size_t page) {
  if (region.records[page].protection != kReadWrite) return false;
  VerifyPage(region, page);
  region.records[page].generation++;
  FillPage(region.start + page * kPageBytes, Base(region, page));
  return true;
}

void ChurnRegions::VerifyPage(Region& region, size_t page) {
  PageRecord& record = region.records[page];
  if ((record.protection & PROT_READ) == 0) return;
  const std::byte* memory = region.start + page * kPageBytes;
  size_t word;
  if (record.generation != 0) {
    word = FirstBadWord(memory, Base(region, page));
  } else if (region.file_backed) {
    word = FirstBadWord(memory, PageBase(kFileSeed, page, 0));
  } else {
    word = FirstNonZeroWord(memory);
  }
  if (word == kWordsPerPage) return;
  const char* what = FirstNonZeroWord(memory) == kWordsPerPage ? "zero" : "something else";
  for (uint32_t older = record.generation; older-- > 0 && older + 8 > record.generation;) {
    if (FirstBadWord(memory, PageBase(region.key, page, older)) == kWordsPerPage) what = "stale";
  }
  workload_.Error("%s region at %p, page %zu of %zu, generation %u, protection %d: holds %s",
                  region.file_backed ? "file" : "anonymous", static_cast<void*>(region.start), page,
                  region.pages, record.generation, record.protection, what);
  if (record.protection == kReadWrite) {  // reported once
    record.generation++;
    FillPage(region.start + page * kPageBytes, Base(region, page));
  }
}

void ChurnRegions::Verify(Region& region, size_t first, size_t count) {
  for (size_t i = first; i < first + count; ++i) VerifyPage(region, i);
}

void ChurnRegions::VerifyAll() {
  for (Region& region : regions_) {
    if (region.start == nullptr) continue;
    Unprotect(region);
    Verify(region, 0, region.pages);
  }
}

Region& ChurnRegions::Pick() { return regions_[1 + random_.Below(regions_.size() - 1)]; }

size_t ChurnRegions::Write(Region& region, size_t pages) {
  size_t written = 0;
  for (size_t i = 0; i < pages; ++i) {
    written += WritePage(region, random_.Below(region.pages)) ? 1 : 0;
  }
  return written;
}

void ChurnRegions::Adopt(Region& region, std::byte* start, size_t pages) {
  region.start = start;
  region.pages = pages;
  region.key = workload_.seed() * 1'000'003 + next_key_++;
  region.file_backed = false;
  region.unmoved = false;
  std::fill_n(region.records.begin(), pages, PageRecord{0, kReadWrite});
  maps_++;
}

size_t ChurnRegions::MapAnonymous(Region& region, size_t pages) {
  void* memory = mmap(nullptr, pages * kPageBytes, kReadWrite, kAnonymous, -1, 0);
  Require(memory != MAP_FAILED, "mmap");
  Adopt(region, static_cast<std::byte*>(memory), pages);
  region.unmoved = true;
  size_t written = 0;  // with holes
  for (size_t i = 0; i < pages; i += 1 + random_.Below(4), ++written) WritePage(region, i);
  return written;
}

size_t ChurnRegions::MapFile(Region& region) {
  const size_t pages = 1 + random_.Below(std::min(kFilePages, settings_.most_pages));
  void* memory = mmap(nullptr, pages * kPageBytes, kReadWrite, MAP_PRIVATE, file_, 0);
  Require(memory != MAP_FAILED, "mmap of the file");
  Adopt(region, static_cast<std::byte*>(memory), pages);
  region.file_backed = true;
  return Write(region, pages / 4);
}

void ChurnRegions::Unmap(Region& region) {
  Verify(region, 0, region.pages);
  Must(munmap(region.start, region.pages * kPageBytes), "munmap");
  region.start = nullptr;
}

void ChurnRegions::Unprotect(Region& region) {
  Must(mprotect(region.start, region.pages * kPageBytes, kReadWrite), "mprotect");
  for (size_t i = 0; i < region.pages; ++i) region.records[i].protection = kReadWrite;
}

bool ChurnRegions::Move(Region& region, std::byte* address, int flags) {
  Unprotect(region);  // one mapping again, where it can be
  const size_t bytes = region.pages * kPageBytes;
  const int fixed = address == nullptr ? 0 : MREMAP_FIXED;
  void* moved = mremap(region.start, bytes, bytes, MREMAP_MAYMOVE | fixed | flags, address);
  if (moved == MAP_FAILED) {
    // The range may be several mappings by now; the kernel then says EFAULT and does nothing.
    if (errno != EFAULT) workload_.Error("mremap: %s", strerror(errno));
    refused_++;
    return false;
  }
  region.start = static_cast<std::byte*>(moved);
  region.unmoved = false;
  moves_++;
  return true;
}

void ChurnRegions::Resize(Region& region) {
  if (region.file_backed) return;
  Unprotect(region);
  const size_t pages = 1 + random_.Below(settings_.most_pages);
  void* moved = mremap(region.start, region.pages * kPageBytes, pages * kPageBytes, MREMAP_MAYMOVE);
  if (moved == MAP_FAILED) {
    if (errno != EFAULT) workload_.Error("mremap: %s", strerror(errno));
    refused_++;
    return;
  }
  region.start = static_cast<std::byte*>(moved);
  region.unmoved = false;
  for (size_t i = region.pages; i < pages; ++i) region.records[i] = {0, kReadWrite};
  region.pages = pages;
  moves_++;
}

void ChurnRegions::MoveAside(Region& region) { Move(region, nullptr, 0); }

// The tail of a mapping goes, and a mapping from elsewhere that was never touched takes its place:
// mremap merges the two, and what was known of either is no longer true.
void ChurnRegions::MoveBesideAnother(Region& region) {
  Region& other = Pick();
  if (&other == &region || !region.unmoved || region.pages <= kNewcomerPages) return;
  if (other.start != nullptr) Unmap(other);
  Unprotect(region);
  Verify(region, region.pages - kNewcomerPages, kNewcomerPages);
  region.pages -= kNewcomerPages;
  std::byte* end = region.start + region.pages * kPageBytes;
  constexpr size_t kBytes = kNewcomerPages * kPageBytes;
  Must(munmap(end, kBytes), "munmap");
  if (mremap(newcomer_, kBytes, kBytes, MREMAP_MAYMOVE | MREMAP_FIXED, end) != end) {
    workload_.Error("mremap beside a neighbour: %s", strerror(errno));
    return;
  }
  // Its fence is of no more use.
  Must(munmap(newcomer_ - kPageBytes, kPageBytes), "munmap");
  Must(munmap(newcomer_ + kBytes, kPageBytes), "munmap");
  if (IsWithinOneMapping(end)) merges_++;
  Adopt(other, end, kNewcomerPages);
  Write(other, kNewcomerPages / 2);
  Write(region, 1 + region.pages / 8);
  // The next one is mapped now, so that it has been there for a while when it moves.
  newcomer_ = MapUntouched(kNewcomerPages);
}

// MREMAP_DONTUNMAP: the pages go, the mapping stays and reads as zero.
void ChurnRegions::MoveLeavingZeroes(Region& region) {
  if (region.file_backed) return;
  Unprotect(region);
  const size_t bytes = region.pages * kPageBytes;
  void* moved = mremap(region.start, bytes, bytes, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, nullptr);
  if (moved == MAP_FAILED) {
    if (errno != EFAULT) workload_.Error("MREMAP_DONTUNMAP: %s", strerror(errno));
    refused_++;
    return;
  }
  for (size_t i = 0; i < region.pages; ++i) {
    const size_t word = FirstNonZeroWord(region.start + i * kPageBytes);
    if (word != kWordsPerPage) workload_.Error("page %zu left by mremap is not zero", i);
  }
  Must(munmap(region.start, bytes), "munmap");
  region.start = static_cast<std::byte*>(moved);
  region.unmoved = false;
  moves_++;
}

// Other content at known addresses: pages remembered by address alone are wrong afterwards.
void ChurnRegions::SwapPlaces(Region& a, Region& b) {
  if (&a == &b || a.start == nullptr || b.start == nullptr || a.pages != b.pages) return;
  std::byte* place_of_a = a.start;
  std::byte* place_of_b = b.start;
  if (!Move(a, nullptr) || a.start == place_of_a) return;
  if (Move(b, place_of_a)) Move(a, place_of_b);
}

void ChurnRegions::Discard(Region& region) {
  const size_t first = random_.Below(region.pages);
  const size_t count = 1 + random_.Below(std::min<size_t>(region.pages - first, 64));
  Verify(region, first, count);
  Must(madvise(region.start + first * kPageBytes, count * kPageBytes, MADV_DONTNEED), "madvise");
  for (size_t i = first; i < first + count; ++i) region.records[i].generation = 0;
  discards_++;
}

void ChurnRegions::Protect(Region& region) {
  constexpr int kProtections[] = {PROT_NONE, PROT_READ, kReadWrite, kReadWrite};
  const int protection = kProtections[random_.Below(4)];
  const size_t first = random_.Below(region.pages);
  const size_t count = 1 + random_.Below(region.pages - first);
  Must(mprotect(region.start + first * kPageBytes, count * kPageBytes, protection), "mprotect");
  for (size_t i = first; i < first + count; ++i) {
    region.records[i].protection = protection;
  }
  Verify(region, first, count);
  protects_++;
}

void ChurnRegions::MapOver(Region& region) {
  if (region.file_backed) return;
  const size_t first = random_.Below(region.pages);
  const size_t count = 1 + random_.Below(std::min<size_t>(region.pages - first, 64));
  void* place = region.start + first * kPageBytes;
  Require(mmap(place, count * kPageBytes, kReadWrite, kAnonymous | MAP_FIXED, -1, 0) == place,
          "mmap over");
  for (size_t i = first; i < first + count; ++i) region.records[i] = {0, kReadWrite};
  maps_++;
}

size_t ChurnRegions::Step() {
  size_t written = Write(regions_[0], 4);
  Region& region = Pick();
  if (region.start == nullptr) {
    if (random_.Below(4) == 0) return written + MapFile(region);
    return written + MapAnonymous(region, 1 + random_.Below(settings_.most_pages));
  }
  switch (random_.Below(16)) {
    case 0:
      Unmap(region);
      break;
    case 1:
      Resize(region);
      break;
    case 2:
      MoveAside(region);
      break;
    case 3:
      MoveBesideAnother(region);
      break;
    case 4:
      MoveLeavingZeroes(region);
      break;
    case 5:
      SwapPlaces(region, Pick());
      break;
    case 6:
      Discard(region);
      break;
    case 7:
      Protect(region);
      break;
    case 8:
      MapOver(region);
      break;
    case 9:
      Verify(region, 0, region.pages);
      break;
    default:
      written += Write(region, 32);
      break;
  }
  return written;
}

}  // namespace predump::workloads
