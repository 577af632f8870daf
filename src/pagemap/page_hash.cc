#include "src/pagemap/page_hash.h"

#include <string.h>
#include <xxhash.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/base/mapped_region.h"
#include "src/base/unique_fd.h"
#include "src/kernel/process_memory.h"
#include "src/pagemap/copied_pages.h"
#include "src/pagemap/mapped_files.h"
#include "src/pagemap/page_scanner.h"

namespace predump::pagemap {
namespace {

using base::AddressRange;
using base::ByteCount;
using base::RemoteAddress;

constexpr size_t kChunkBytes = 1 << 20;

// One page as read; no bytes where it could not be.
using PageVisitor =
    absl::FunctionRef<absl::Status(RemoteAddress page, std::span<const std::byte> bytes)>;

Extent PageAt(RemoteAddress address) {
  return AddressRange::FromOrdered(address.value(), address.value() + base::PageSize());
}

class PageReader {
 public:
  static absl::StatusOr<PageReader> Create(const kernel::ProcessHandle& process,
                                           std::span<const AddressRange> masked) {
    PREDUMP_ASSIGN_OR_RETURN(UnreadablePages unreadable, UnreadablePages::Open(process));
    PREDUMP_ASSIGN_OR_RETURN(base::MappedRegion buffer, base::MappedRegion::Anonymous(kChunkBytes));
    std::vector<AddressRange> sorted(masked.begin(), masked.end());
    std::sort(sorted.begin(), sorted.end());
    return PageReader(process, std::move(unreadable), std::move(buffer), std::move(sorted));
  }

  // Visits every page of `extents`, in order.
  absl::Status Visit(std::span<const Extent> extents, PageVisitor visitor) {
    for (const Extent& extent : extents) {
      RemoteAddress at = extent.start();
      while (at < extent.end()) {
        const uint64_t end = std::min(extent.end().value(), at.value() + kChunkBytes);
        PREDUMP_ASSIGN_OR_RETURN(at,
                                 VisitChunk(AddressRange::FromOrdered(at.value(), end), visitor));
      }
    }
    return absl::OkStatus();
  }

 private:
  PageReader(const kernel::ProcessHandle& process, UnreadablePages unreadable,
             base::MappedRegion buffer, std::vector<AddressRange> masked)
      : process_(&process),
        unreadable_(std::move(unreadable)),
        buffer_(std::move(buffer)),
        masked_(std::move(masked)) {}

  // Visits pages from the start of `chunk` and returns where it stopped.
  absl::StatusOr<RemoteAddress> VisitChunk(Extent chunk, PageVisitor visitor) {
    PREDUMP_ASSIGN_OR_RETURN(
        ByteCount got, kernel::ReadProcessMemory(*process_, std::span(&chunk, 1), buffer_.bytes()));
    got = base::ToBytes(base::ToPages(got));
    Extent unreadable;
    if (got == ByteCount(0)) {
      PREDUMP_ASSIGN_OR_RETURN(const UnreadablePages::Result result,
                               unreadable_.Read(chunk, buffer_.bytes()));
      got = result.read.size();
      unreadable = result.vanished;
    }
    const ByteCount page(base::PageSize());
    const Extent read =
        AddressRange::FromOrdered(chunk.start().value(), (chunk.start() + got).value());
    Mask(read);
    for (ByteCount offset; offset < got; offset += page) {
      PREDUMP_RETURN_IF_ERROR(
          visitor(read.start() + offset, buffer_.bytes().subspan(offset.value(), page.value())));
    }
    for (RemoteAddress at = unreadable.start(); at < unreadable.end(); at = at + page) {
      PREDUMP_RETURN_IF_ERROR(visitor(at, {}));
    }
    return unreadable.empty() ? read.end() : unreadable.end();
  }

  // Zeroes what of `read`, which the buffer holds, is masked.
  void Mask(Extent read) {
    const auto first = std::partition_point(
        masked_.begin(), masked_.end(), [&](AddressRange m) { return m.end() <= read.start(); });
    for (auto m = first; m != masked_.end() && m->start() < read.end(); ++m) {
      const AddressRange part = read.Intersect(*m);
      if (part.empty()) continue;
      const std::span<std::byte> bytes =
          buffer_.bytes().subspan((part.start() - read.start()).value(), part.size().value());
      std::fill(bytes.begin(), bytes.end(), std::byte{0});
    }
  }

  const kernel::ProcessHandle* process_;
  UnreadablePages unreadable_;
  base::MappedRegion buffer_;
  std::vector<AddressRange> masked_;  // ascending, disjoint
};

bool IsZero(std::span<const std::byte> bytes) {
  return bytes[0] == std::byte{0} && memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
}

// Whether `bytes` is what the file behind `vma` holds at `page`.
bool EqualsFile(int fd, const Vma& vma, RemoteAddress page, std::span<const std::byte> bytes) {
  std::vector<std::byte> in_file(bytes.size());
  return ReadMappedFile(fd, vma, page, in_file) &&
         std::equal(bytes.begin(), bytes.end(), in_file.begin());
}

absl::Status FindUnexpected(const kernel::ProcessHandle& process, const Vma& vma,
                            const ExtentSet& pages, PageReader& reader, ExtentSet& unexpected) {
  if (pages.empty()) return absl::OkStatus();
  base::UniqueFd file;  // where it cannot be opened, every private copy is unexpected
  if (vma.kind == VmaKind::kFilePrivate) {
    absl::StatusOr<base::UniqueFd> opened = OpenMappedFile(process, vma);
    if (opened.ok()) file = *std::move(opened);
  }
  return reader.Visit(pages.extents(), [&](RemoteAddress page, std::span<const std::byte> bytes) {
    // Unreadable here means that nothing is behind it, past the end of a file for one.
    const bool harmless = bytes.empty() || (vma.kind == VmaKind::kFilePrivate
                                                ? EqualsFile(file.get(), vma, page, bytes)
                                                : IsZero(bytes));
    if (!harmless) unexpected.Add(PageAt(page));
    return absl::OkStatus();
  });
}

absl::StatusOr<ExtentSet> DataPagesOf(PageScanner& scanner, const Vma& vma) {
  ExtentSet range;
  range.Add(vma.range);
  PREDUMP_ASSIGN_OR_RETURN(
      PageContents contents,
      scanner.Classify(range,
                       vma.kind == VmaKind::kFilePrivate ? Backing::kFile : Backing::kAnonymous,
                       WalkPace::kWhole));
  return std::move(contents.data);
}

}  // namespace

uint64_t HashPage(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

absl::StatusOr<ExtentSet> DataPages(const kernel::ProcessHandle& process, const VmaList& vmas) {
  PREDUMP_ASSIGN_OR_RETURN(PageScanner scanner, PageScanner::Open(process));
  ExtentSet all;
  for (const Vma& vma : vmas.vmas()) {
    if (!vma.is_private_memory()) continue;
    PREDUMP_ASSIGN_OR_RETURN(const ExtentSet data, DataPagesOf(scanner, vma));
    all.AddAll(data);
  }
  return all;
}

absl::StatusOr<std::vector<uint64_t>> HashPages(const kernel::ProcessHandle& process,
                                                std::span<const Extent> extents,
                                                std::span<const AddressRange> masked) {
  PREDUMP_ASSIGN_OR_RETURN(PageReader reader, PageReader::Create(process, masked));
  std::vector<uint64_t> hashes;
  PREDUMP_RETURN_IF_ERROR(
      reader.Visit(extents, [&](RemoteAddress page, std::span<const std::byte> bytes) {
        if (bytes.empty()) {
          return absl::OutOfRangeError(
              absl::StrCat("page ", PageAt(page).ToString(), " cannot be read"));
        }
        hashes.push_back(HashPage(bytes));
        return absl::OkStatus();
      }));
  return hashes;
}

absl::StatusOr<PageDifferences> ComparePages(const kernel::ProcessHandle& process,
                                             const VmaList& vmas, const ExpectedPages& expected,
                                             std::span<const AddressRange> masked) {
  if (expected.pages.pages().value() != expected.hashes.size()) {
    return absl::InvalidArgumentError(absl::StrCat(expected.hashes.size(), " hashes for ",
                                                   expected.pages.pages().value(), " pages"));
  }
  PREDUMP_ASSIGN_OR_RETURN(PageReader reader, PageReader::Create(process, masked));
  PageDifferences differences;
  size_t next = 0;
  PREDUMP_RETURN_IF_ERROR(reader.Visit(expected.pages.extents(),
                                       [&](RemoteAddress page, std::span<const std::byte> bytes) {
                                         const uint64_t wanted = expected.hashes[next++];
                                         if (bytes.empty() || HashPage(bytes) != wanted) {
                                           differences.differing.Add(PageAt(page));
                                         }
                                         return absl::OkStatus();
                                       }));
  PREDUMP_ASSIGN_OR_RETURN(PageScanner scanner, PageScanner::Open(process));
  for (const Vma& vma : vmas.vmas()) {
    if (!vma.is_private_memory()) continue;
    PREDUMP_ASSIGN_OR_RETURN(ExtentSet data, DataPagesOf(scanner, vma));
    data.Subtract(expected.pages);
    PREDUMP_RETURN_IF_ERROR(FindUnexpected(process, vma, data, reader, differences.unexpected));
  }
  return differences;
}

}  // namespace predump::pagemap
