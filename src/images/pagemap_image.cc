#include "src/images/pagemap_image.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "proto/criu_memory.pb.h"
#include "src/base/errors.h"
#include "src/images/image_constants.h"
#include "src/images/image_file.h"

namespace predump::images {
namespace {

constexpr uint32_t kAllPageFlags = kPageParent | kPageLazy | kPagePresent;
// An object's offsets are those of a file (loff_t).
constexpr uint64_t kObjectEnd = uint64_t{std::numeric_limits<int64_t>::max()} & ~(kPageBytes - 1);
// The older of the two page counts has 32 bits.
constexpr uint64_t kMostPagesInEntry = std::numeric_limits<uint32_t>::max();

uint64_t EndOf(PagesOf::Kind kind) {
  return kind == PagesOf::Kind::kTask ? kUserSpaceEnd : kObjectEnd;
}

PagemapEntry FromMessage(const criu::pagemap_entry& message) {
  PagemapEntry entry;
  entry.start = message.vaddr();
  entry.pages = message.has_nr_pages() ? message.nr_pages() : message.compat_nr_pages();
  entry.flags = message.flags();
  if (message.in_parent()) {
    entry.flags |= kPageParent;
  } else if (!message.has_flags()) {
    entry.flags = kPagePresent;
  }
  return entry;
}

// The size of the pages file against what the entries say lies in it.
absl::Status CheckPagesFile(int directory_fd, const std::string& pagemap_name,
                            const Pagemap& pagemap) {
  uint64_t pages = 0;
  for (const PagemapEntry& entry : pagemap.entries) {
    if ((entry.flags & kPagePresent) != 0) pages += entry.pages;
  }
  if (pages == 0) return absl::OkStatus();
  const std::string name = PagesName(pagemap.pages_id);
  struct stat stat;
  if (::fstatat(directory_fd, name.c_str(), &stat, 0) != 0) {
    if (errno != ENOENT) return base::ErrnoError(errno, "stat ", name);
    return absl::DataLossError(
        absl::StrCat(pagemap_name, ": its pages file ", name, " is missing"));
  }
  if (!S_ISREG(stat.st_mode)) {
    return absl::DataLossError(absl::StrCat(name, ": not a regular file"));
  }
  const uint64_t held = static_cast<uint64_t>(stat.st_size) / kPageBytes;
  if (held < pages) {
    return absl::DataLossError(absl::StrCat(name, ": is cut short, it holds ", held, " of the ",
                                            pages, " pages that ", pagemap_name, " counts"));
  }
  return absl::OkStatus();
}

}  // namespace

std::string PagesOf::PagemapName() const {
  return absl::StrCat(kind == Kind::kTask ? "pagemap-" : "pagemap-shmem-", id, ".img");
}

std::string PagesName(uint32_t pages_id) { return absl::StrCat("pages-", pages_id, ".img"); }

absl::Status CheckPagemapEntry(const PagemapEntry& entry, PagesOf::Kind kind) {
  const char* wrong = nullptr;
  if (entry.start % kPageBytes != 0) {
    wrong = "does not begin at a page";
  } else if (entry.pages == 0) {
    wrong = "has no pages";
  } else if (entry.start >= EndOf(kind) || entry.pages > (EndOf(kind) - entry.start) / kPageBytes) {
    wrong = kind == PagesOf::Kind::kTask ? "lies beyond what a process can address"
                                         : "lies beyond what an object can hold";
  } else if ((entry.flags & ~kAllPageFlags) != 0) {
    wrong = "has flags that are not known here";
  } else if ((entry.flags & kPageParent) != 0 && (entry.flags & kPagePresent) != 0) {
    wrong = "is both here and in the parent";
  } else if ((entry.flags & (kPageParent | kPagePresent)) == 0) {
    wrong = "is neither here nor in the parent (a dump with --lazy-pages leaves such)";
  }
  if (wrong == nullptr) return absl::OkStatus();
  return absl::DataLossError(absl::StrFormat("the entry at 0x%x (%u pages, flags 0x%x) %s",
                                             entry.start, entry.pages, entry.flags, wrong));
}

absl::StatusOr<Pagemap> ReadPagemap(int directory_fd, const PagesOf& of) {
  const std::string name = of.PagemapName();
  PREDUMP_ASSIGN_OR_RETURN(ImageReader reader,
                           ImageReader::Open(directory_fd, name, ImageMagic::kPagemap));
  criu::pagemap_head head;
  PREDUMP_ASSIGN_OR_RETURN(const bool has_head, reader.Next(head));
  if (!has_head) return reader.Error("has no head");
  Pagemap pagemap;
  pagemap.pages_id = head.pages_id();
  criu::pagemap_entry message;
  for (uint64_t end = 0;;) {
    PREDUMP_ASSIGN_OR_RETURN(const bool another, reader.Next(message));
    if (!another) break;
    const PagemapEntry entry = FromMessage(message);
    PREDUMP_RETURN_IF_ERROR(base::Annotate(CheckPagemapEntry(entry, of.kind), name));
    if (entry.start < end) {
      return reader.Error(absl::StrFormat(
          "the entry at 0x%x begins before the end (0x%x) of the one in front of it", entry.start,
          end));
    }
    end = entry.end();
    pagemap.entries.push_back(entry);
  }
  PREDUMP_RETURN_IF_ERROR(CheckPagesFile(directory_fd, name, pagemap));
  return pagemap;
}

absl::Status WritePagemap(int directory_fd, const PagesOf& of, const Pagemap& pagemap) {
  const std::string name = of.PagemapName();
  PREDUMP_ASSIGN_OR_RETURN(ImageWriter writer,
                           ImageWriter::Create(directory_fd, name, ImageMagic::kPagemap));
  criu::pagemap_head head;
  head.set_pages_id(pagemap.pages_id);
  PREDUMP_RETURN_IF_ERROR(writer.Add(head));
  criu::pagemap_entry message;
  uint64_t end = 0;
  for (const PagemapEntry& entry : pagemap.entries) {
    PREDUMP_RETURN_IF_ERROR(base::Annotate(CheckPagemapEntry(entry, of.kind), name));
    if (entry.start < end) {
      return absl::InternalError(
          absl::StrFormat("%s: entries out of order at 0x%x", name, entry.start));
    }
    end = entry.end();
    for (uint64_t done = 0; done < entry.pages;) {
      const uint64_t pages = std::min(entry.pages - done, kMostPagesInEntry);
      message.set_vaddr(entry.start + done * kPageBytes);
      message.set_compat_nr_pages(static_cast<uint32_t>(pages));
      message.set_nr_pages(pages);
      message.set_flags(entry.flags);
      PREDUMP_RETURN_IF_ERROR(writer.Add(message));
      done += pages;
    }
  }
  return writer.Finish();
}

std::optional<uint64_t> FirstNotInParent(const Pagemap& child, const Pagemap& parent) {
  auto at_parent = parent.entries.begin();
  for (const PagemapEntry& entry : child.entries) {
    if ((entry.flags & kPageParent) == 0) continue;
    for (uint64_t at = entry.start; at < entry.end(); at = at_parent->end()) {
      while (at_parent != parent.entries.end() && at_parent->end() <= at) ++at_parent;
      if (at_parent == parent.entries.end() || at_parent->start > at) return at;
    }
  }
  return std::nullopt;
}

}  // namespace predump::images
