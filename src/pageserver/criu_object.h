// The pages of one object (a task's memory, a shared memory object) as a CRIU client sends them.
//
// Thread rule: an object belongs to one thread at a time.
#ifndef PREDUMP_PAGESERVER_CRIU_OBJECT_H_
#define PREDUMP_PAGESERVER_CRIU_OBJECT_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/images/pagemap_image.h"
#include "src/pageserver/payload_file.h"

namespace predump::pageserver {

// What `object` of a message stands for, with the type numbers of all versions. Nothing: a type or
// an id that no version sends.
std::optional<images::PagesOf> ParseObject(uint64_t object);

class CriuObject {
 public:
  // Separate runs of one object: 64 GiB of which every other page is missing.
  static constexpr size_t kMostEntries = size_t{1} << 23;

  // Makes the pages file. `directory_fd` is borrowed. `parent`: what the parent directory holds of
  // it; nothing where it holds nothing.
  static absl::StatusOr<CriuObject> Create(int directory_fd, const images::PagesOf& of,
                                           uint32_t pages_id,
                                           std::optional<images::Pagemap> parent);

  const images::PagesOf& of() const { return of_; }
  bool has_parent() const { return parent_.has_value(); }
  // Where the bytes of the present entries go, in the order of Add.
  PayloadFile& pages() { return pages_; }

  // Notes a run. DataLoss: it can't be one (CheckPagemapEntry). ResourceExhausted: too many.
  absl::Status Add(const images::PagemapEntry& entry);

  struct Counts {
    uint64_t present = 0;  // pages
    uint64_t in_parent = 0;
  };
  // Puts the runs in order, the pages file too where they came in another, and writes the pagemap.
  // DataLoss: runs overlap, or the parent lacks what one says is there.
  absl::StatusOr<Counts> Finish();

 private:
  CriuObject(int directory_fd, const images::PagesOf& of, uint32_t pages_id,
             std::optional<images::Pagemap> parent, PayloadFile pages)
      : directory_fd_(directory_fd), of_(of), parent_(std::move(parent)), pages_(std::move(pages)) {
    pagemap_.pages_id = pages_id;
  }
  absl::Status PutInOrder();

  int directory_fd_;
  images::PagesOf of_;
  std::optional<images::Pagemap> parent_;
  PayloadFile pages_;
  images::Pagemap pagemap_;
  bool ordered_ = true;  // so far
};

}  // namespace predump::pageserver

#endif  // PREDUMP_PAGESERVER_CRIU_OBJECT_H_
