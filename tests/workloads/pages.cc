#include "tests/workloads/pages.h"

#include <string.h>
#include <sys/mman.h>

namespace predump::workloads {

uint64_t PageBase(uint64_t seed, uint64_t page, uint64_t generation) {
  // The finalizer of splitmix64: neighbouring inputs give unrelated outputs.
  uint64_t x = seed ^ (page * 0xD6E8FEB86659FD93u) ^ (generation * 0xA0761D6478BD642Fu);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

void FillPage(void* page, uint64_t base) {
  auto* words = static_cast<uint64_t*>(page);
  for (size_t i = 0; i < kWordsPerPage; ++i) words[i] = base + i * kWordStride;
}

size_t FirstBadWord(const void* page, uint64_t base) {
  const auto* words = static_cast<const uint64_t*>(page);
  uint64_t differences = 0;
  for (size_t i = 0; i < kWordsPerPage; ++i) differences |= words[i] ^ (base + i * kWordStride);
  if (differences == 0) return kWordsPerPage;
  size_t i = 0;
  while (i < kWordsPerPage && words[i] == base + i * kWordStride) ++i;
  return i;
}

size_t FirstNonZeroWord(const void* page) {
  const auto* words = static_cast<const uint64_t*>(page);
  size_t i = 0;
  while (i < kWordsPerPage && words[i] == 0) ++i;
  return i;
}

CheckedPages::CheckedPages(Workload& workload, void* memory, size_t pages, uint64_t seed, bool fill)
    : workload_(workload),
      memory_(static_cast<std::byte*>(memory)),
      seed_(seed),
      zero_at_first_(!fill),
      generations_(pages, 0) {
  if (!fill) return;
  for (size_t i = 0; i < pages; ++i) FillPage(page(i), PageBase(seed_, i, 0));
}

void CheckedPages::Write(size_t index) {
  Verify(index);
  FillPage(page(index), PageBase(seed_, index, ++generations_[index]));
}

bool CheckedPages::Verify(size_t index) {
  const uint32_t generation = generations_[index];
  const bool zero = zero_at_first_ && generation == 0;
  const size_t word = zero ? FirstNonZeroWord(page(index))
                           : FirstBadWord(page(index), PageBase(seed_, index, generation));
  if (word == kWordsPerPage) return true;
  Complain(index, word);
  if (zero) {
    memset(page(index), 0, kPageBytes);
  } else {
    FillPage(page(index), PageBase(seed_, index, generation));
  }
  return false;
}

void CheckedPages::VerifyAll() {
  for (size_t i = 0; i < pages(); ++i) Verify(i);
}

void CheckedPages::Refill(size_t first, size_t count) {
  for (size_t i = first; i < first + count; ++i) {
    FillPage(page(i), PageBase(seed_, i, ++generations_[i]));
  }
}

void CheckedPages::MarkDiscarded(size_t first, size_t count) {
  for (size_t i = first; i < first + count; ++i) generations_[i] = 0;
}

void CheckedPages::Complain(size_t index, size_t word) {
  const uint32_t generation = generations_[index];
  const char* what = FirstNonZeroWord(page(index)) == kWordsPerPage ? "all zero" : "unknown";
  uint32_t age = 0;
  for (uint32_t back = 1; back <= 16 && back <= generation; ++back) {
    if (FirstBadWord(page(index), PageBase(seed_, index, generation - back)) != kWordsPerPage) {
      continue;
    }
    what = "stale by generations:";
    age = back;
    break;
  }
  workload_.Error("page %zu at %p, generation %u: word %zu is wrong; content %s %u", index,
                  static_cast<void*>(page(index)), generation, word, what, age);
}

void* MapPages(size_t pages, void* address) {
  const int fixed = address == nullptr ? 0 : MAP_FIXED_NOREPLACE;
  void* memory = mmap(address, pages * kPageBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1, 0);
  Require(memory != MAP_FAILED, "mmap");
  if (address != nullptr && memory != address) Die("mmap did not honour the address");
  return memory;
}

}  // namespace predump::workloads
