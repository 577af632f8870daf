#include "src/core/contents.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "src/base/errors.h"
#include "src/base/unique_fd.h"
#include "src/kernel/pagemap_scan.h"
#include "src/kernel/process_memory.h"

namespace predump::core {
namespace {

using base::AddressRange;
using kernel::MapsEntry;
using kernel::ProcessHandle;
using pagemap::Backing;
using pagemap::ExtentSet;
using pagemap::PageScanner;
using pagemap::WalkPace;

constexpr size_t kRegionsPerCall = 1024;

ExtentSet SetOf(AddressRange range) {
  ExtentSet set;
  set.Add(range);
  return set;
}

// Both kinds of look; the second where the kernel has no PAGEMAP_SCAN.
class Scans {
 public:
  static absl::StatusOr<Scans> Open(const ProcessHandle& process, WalkPace pace) {
    PREDUMP_ASSIGN_OR_RETURN(PageScanner scan, PageScanner::Open(process));
    PREDUMP_ASSIGN_OR_RETURN(PageScanner entries,
                             PageScanner::Open(process, PageScanner::Method::kEntries));
    PREDUMP_ASSIGN_OR_RETURN(kernel::PagemapFile guards, kernel::PagemapFile::Open(process));
    return Scans(std::move(scan), std::move(entries), std::move(guards), pace);
  }

  absl::StatusOr<ExtentSet> Data(const ExtentSet& pages, Backing backing) {
    absl::StatusOr<pagemap::PageContents> contents = scan_.Classify(pages, backing, pace_);
    if (absl::IsUnimplemented(contents.status())) {
      contents = entries_.Classify(pages, backing, pace_);
    }
    PREDUMP_RETURN_IF_ERROR(contents);
    return std::move(contents->data);
  }

  // Pages that MADV_GUARD_INSTALL made unreadable. They look as if they were swapped out; kernels
  // before 6.15 tell nobody, and there they are found unreadable one by one.
  absl::StatusOr<ExtentSet> Guards(AddressRange range) {
    ExtentSet guards;
    std::array<kernel::PageRegion, kRegionsPerCall> regions;
    while (!range.empty()) {
      const auto scan = guards_.Scan({.range = range,
                                      .category_mask = kernel::kPageIsGuard,
                                      .return_mask = kernel::kPageIsGuard},
                                     regions);
      if (base::IsTargetExited(scan.status())) return scan.status();
      if (!scan.ok() || scan->walk_end <= range.start()) break;
      for (size_t i = 0; i < scan->count; ++i) {
        guards.Add(AddressRange::FromOrdered(regions[i].start, regions[i].end));
      }
      range = AddressRange::FromOrdered(scan->walk_end.value(), range.end().value());
    }
    return guards;
  }

 private:
  Scans(PageScanner scan, PageScanner entries, kernel::PagemapFile guards, WalkPace pace)
      : scan_(std::move(scan)),
        entries_(std::move(entries)),
        guards_(std::move(guards)),
        pace_(pace) {}

  PageScanner scan_;
  PageScanner entries_;
  kernel::PagemapFile guards_;
  WalkPace pace_;
};

// The addresses of `entry` behind which its file has data. Nothing where that cannot be asked.
std::optional<ExtentSet> FileData(const ProcessHandle& process, const MapsEntry& entry) {
  const std::string name =
      absl::StrFormat("map_files/%x-%x", entry.range.start().value(), entry.range.end().value());
  struct stat info;
  // Opening may do something to what is no regular file, so it is looked at first.
  if (::fstatat(process.proc_fd(), name.c_str(), &info, 0) != 0 || !S_ISREG(info.st_mode)) {
    return std::nullopt;
  }
  const base::UniqueFd fd(::openat(process.proc_fd(), name.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return std::nullopt;
  const uint64_t page = base::PageSize();
  const uint64_t first = entry.file_offset;
  const uint64_t end = first + entry.range.size().value();
  const auto address = [&](uint64_t at) { return entry.range.start().value() + (at - first); };
  ExtentSet data;
  for (uint64_t at = first; at < end;) {
    const off_t start = ::lseek(fd.get(), static_cast<off_t>(at), SEEK_DATA);
    if (start < 0 && errno == ENXIO) break;  // nothing more up to the end of the file
    if (start < 0) return std::nullopt;
    const off_t stop = ::lseek(fd.get(), start, SEEK_HOLE);
    if (stop < 0) return std::nullopt;
    const uint64_t from = std::max<uint64_t>(static_cast<uint64_t>(start) / page * page, first);
    const uint64_t to =
        std::min<uint64_t>((static_cast<uint64_t>(stop) + page - 1) / page * page, end);
    if (from >= end) break;
    data.Add(AddressRange::FromOrdered(address(from), address(to)));
    at = std::max(to, at + page);
  }
  return data;
}

bool StartsWithElfHeader(const kernel::ProcessMemory& memory, const MapsEntry& entry) {
  std::array<std::byte, SELFMAG> magic;
  const auto got = memory.Read(entry.range.start(), magic);
  return got.ok() && got->value() == magic.size() &&
         std::memcmp(magic.data(), ELFMAG, SELFMAG) == 0;
}

class Finder {
 public:
  Finder(const ProcessHandle& process, Scans scans, kernel::ProcessMemory memory)
      : process_(process), scans_(std::move(scans)), memory_(std::move(memory)) {}

  absl::StatusOr<Contents> Find(const std::vector<Mapping>& mappings, uint64_t filter) {
    std::vector<Policy> policies;
    ExtentSet anonymous;
    ExtentSet files;
    for (const Mapping& mapping : mappings) {
      policies.push_back(PolicyOf(mapping, filter));
      const Content content = policies.back().content;
      if (content == Content::kData) anonymous.Add(mapping.entry.range);
      if (content == Content::kOwnPages) files.Add(mapping.entry.range);
    }
    PREDUMP_ASSIGN_OR_RETURN(data_, scans_.Data(anonymous, Backing::kAnonymous));
    PREDUMP_ASSIGN_OR_RETURN(own_, scans_.Data(files, Backing::kFile));
    Contents contents;
    for (size_t i = 0; i < mappings.size(); ++i) {
      Taken taken = {mappings[i], {}, true};
      PREDUMP_RETURN_IF_ERROR(Take(policies[i], taken, contents.warnings));
      contents.taken.push_back(std::move(taken));
    }
    return contents;
  }

 private:
  absl::Status Take(const Policy& policy, Taken& taken, std::vector<std::string>& warnings) {
    const MapsEntry& entry = taken.mapping.entry;
    const ExtentSet whole = SetOf(entry.range);
    switch (policy.content) {
      case Content::kNothing:
        break;
      case Content::kVdso:
        taken.pages = whole;
        return absl::OkStatus();
      case Content::kData:
        taken.pages = data_.Intersection(whole);
        break;
      case Content::kOwnPages:
        taken.pages = own_.Intersection(whole);
        taken.rest_is_zeros = false;
        // Nobody could read the rest of a file that is gone.
        if (entry.deleted && !taken.pages.empty()) {
          taken.pages = FileData(process_, entry).value_or(whole);
          taken.pages.AddAll(own_.Intersection(whole));
          taken.rest_is_zeros = true;
        }
        break;
      case Content::kWholeFile: {
        PREDUMP_ASSIGN_OR_RETURN(const ExtentSet own, scans_.Data(whole, Backing::kFile));
        taken.pages = FileData(process_, entry).value_or(whole);
        taken.pages.AddAll(own);
        break;
      }
      case Content::kSharedObject: {
        std::optional<ExtentSet> data = FileData(process_, entry);
        if (data.has_value()) {
          taken.pages = *std::move(data);
          break;
        }
        PREDUMP_ASSIGN_OR_RETURN(taken.pages, scans_.Data(whole, Backing::kAnonymous));
        warnings.push_back(absl::StrCat("shared memory ", entry.range.ToString(), " (", entry.path,
                                        "): only the pages that this process itself has touched "
                                        "are in the core; the others need CAP_CHECKPOINT_RESTORE"));
        break;
      }
    }
    if (policy.elf_header && !taken.pages.Contains(entry.range.start()) &&
        StartsWithElfHeader(memory_, entry)) {
      const uint64_t start = entry.range.start().value();
      taken.pages.Add(AddressRange::FromOrdered(start, start + base::PageSize()));
      taken.rest_is_zeros = false;
    }
    if (taken.pages.empty()) return absl::OkStatus();
    PREDUMP_ASSIGN_OR_RETURN(const ExtentSet guards, scans_.Guards(entry.range));
    taken.pages.Subtract(guards);
    return absl::OkStatus();
  }

  const ProcessHandle& process_;
  Scans scans_;
  kernel::ProcessMemory memory_;
  ExtentSet data_;
  ExtentSet own_;
};

}  // namespace

absl::StatusOr<Contents> FindContents(const ProcessHandle& process,
                                      const std::vector<Mapping>& mappings, uint64_t filter,
                                      WalkPace pace) {
  PREDUMP_ASSIGN_OR_RETURN(Scans scans, Scans::Open(process, pace));
  PREDUMP_ASSIGN_OR_RETURN(kernel::ProcessMemory memory,
                           kernel::ProcessMemory::Open(process, O_RDONLY));
  return Finder(process, std::move(scans), std::move(memory)).Find(mappings, filter);
}

}  // namespace predump::core
