#include "src/images/page_chain.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "src/base/errors.h"
#include "src/images/image_constants.h"
#include "src/images/image_store.h"

namespace predump::images {
namespace {

// Pages that some directory says are in its parent.
struct Wanted {
  uint64_t start = 0;
  uint64_t end = 0;
};

void Append(uint64_t start, uint64_t end, std::vector<Wanted>& to) {
  if (!to.empty() && to.back().end == start) {
    to.back().end = end;
  } else {
    to.push_back({start, end});
  }
}

void Append(const StoredRun& run, std::vector<StoredRun>& to) {
  if (!to.empty()) {
    StoredRun& last = to.back();
    if (last.fd == run.fd && last.end() == run.start &&
        last.offset + last.pages * kPageBytes == run.offset) {
      last.pages += run.pages;
      return;
    }
  }
  to.push_back(run);
}

// For messages; the descriptor's number where the kernel does not say.
std::string DirectoryName(int directory_fd) {
  char path[4096];
  const ssize_t n =
      ::readlink(absl::StrCat("/proc/self/fd/", directory_fd).c_str(), path, sizeof path);
  return n > 0 ? std::string(path, static_cast<size_t>(n))
               : absl::StrCat("directory ", directory_fd);
}

absl::Status Bad(int directory_fd, absl::string_view what) {
  return absl::DataLossError(absl::StrCat(DirectoryName(directory_fd), ": ", what));
}

// A chain takes a descriptor for each directory that holds pages of it, and may be longer than the
// usual soft limit of 1,024. The hard limit is what the administrator means.
bool RaiseDescriptorLimit() {
  struct rlimit limit;
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= limit.rlim_max) return false;
  limit.rlim_cur = limit.rlim_max;
  return ::setrlimit(RLIMIT_NOFILE, &limit) == 0;
}

absl::StatusOr<base::UniqueFd> OpenPages(int directory_fd, uint32_t pages_id) {
  const std::string name = PagesName(pages_id);
  base::UniqueFd fd(::openat(directory_fd, name.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return base::ErrnoError(errno, "open ", DirectoryName(directory_fd), "/", name);
  return fd;
}

// One directory's part in the chain.
class Level {
 public:
  Level(int directory_fd, const Pagemap& pagemap, std::vector<base::UniqueFd>& files)
      : directory_fd_(directory_fd), pagemap_(pagemap), files_(files) {}

  // Finds each page of `wanted` among the entries: what is here goes to `runs`, what is in the
  // parent to `parent`. Linear in both lists.
  absl::Status Take(const std::vector<Wanted>& wanted, std::vector<StoredRun>& runs,
                    std::vector<Wanted>& parent) {
    for (const Wanted& range : wanted) {
      for (uint64_t at = range.start; at < range.end;) {
        while (!at_end() && entry().end() <= at) Advance();
        if (at_end() || entry().start > at) {
          return Bad(
              directory_fd_,
              absl::StrFormat("a child of it expects the page at 0x%x here, and it is not", at));
        }
        const uint64_t end = std::min(range.end, entry().end());
        PREDUMP_RETURN_IF_ERROR(TakePart(at, end, runs, parent));
        at = end;
      }
    }
    return absl::OkStatus();
  }

  // The same for all that is there.
  absl::Status TakeAll(std::vector<StoredRun>& runs, std::vector<Wanted>& parent) {
    for (; !at_end(); Advance()) {
      PREDUMP_RETURN_IF_ERROR(TakePart(entry().start, entry().end(), runs, parent));
    }
    return absl::OkStatus();
  }

 private:
  bool at_end() const { return index_ == pagemap_.entries.size(); }
  const PagemapEntry& entry() const { return pagemap_.entries[index_]; }
  bool present() const { return (entry().flags & kPagePresent) != 0; }

  void Advance() {
    if (present()) offset_ += entry().pages * kPageBytes;
    ++index_;
  }

  // [start, end) lies in the entry we are at.
  absl::Status TakePart(uint64_t start, uint64_t end, std::vector<StoredRun>& runs,
                        std::vector<Wanted>& parent) {
    if (!present()) {
      Append(start, end, parent);
      return absl::OkStatus();
    }
    if (fd_ < 0) {
      PREDUMP_ASSIGN_OR_RETURN(base::UniqueFd file, OpenPages(directory_fd_, pagemap_.pages_id));
      fd_ = file.get();
      files_.push_back(std::move(file));
    }
    Append({start, (end - start) / kPageBytes, fd_, offset_ + (start - entry().start)}, runs);
    return absl::OkStatus();
  }

  int directory_fd_;
  const Pagemap& pagemap_;
  std::vector<base::UniqueFd>& files_;
  size_t index_ = 0;
  uint64_t offset_ = 0;  // in the pages file, of the entry at index_
  int fd_ = -1;          // of the pages file, once something in it is needed
};

// Steps from a directory to its parent, and notices when it comes back to one it has seen.
class ParentWalk {
 public:
  explicit ParentWalk(int first) : current_(first) {}

  int current() const { return current_; }

  // `needed_at`: an address that a child expects there, for messages.
  absl::Status Step(uint64_t needed_at, const PagesOf& of) {
    PREDUMP_RETURN_IF_ERROR(Note());
    absl::StatusOr<base::UniqueFd> parent = OpenParent(current_);
    if (absl::IsNotFound(parent.status())) {
      return Bad(current_, absl::StrFormat("%s says that the page at 0x%x is in the parent, and "
                                           "there is no `parent`",
                                           of.PagemapName(), needed_at));
    }
    PREDUMP_RETURN_IF_ERROR(base::Annotate(parent.status(), DirectoryName(current_)));
    directory_ = *std::move(parent);
    current_ = directory_.get();
    return absl::OkStatus();
  }

 private:
  absl::Status Note() {
    struct stat stat;
    if (::fstat(current_, &stat) != 0) {
      return base::ErrnoError(errno, "stat ", DirectoryName(current_));
    }
    if (!seen_.insert({stat.st_dev, stat.st_ino}).second) {
      return Bad(current_, "is a parent of itself: its `parent` links go round in a circle");
    }
    if (seen_.size() >= static_cast<size_t>(PageChain::kMaxDepth)) {
      return Bad(current_, absl::StrCat("the chain of parents that ends here is longer than ",
                                        PageChain::kMaxDepth, " directories"));
    }
    return absl::OkStatus();
  }

  int current_;
  base::UniqueFd directory_;
  absl::flat_hash_set<std::pair<dev_t, ino_t>> seen_;
};

}  // namespace

absl::StatusOr<PageChain> PageChain::Open(int directory_fd, const PagesOf& of) {
  absl::StatusOr<PageChain> chain = Follow(directory_fd, of);
  if (base::ErrnoOf(chain.status()) == EMFILE && RaiseDescriptorLimit()) {
    chain = Follow(directory_fd, of);
  }
  return chain;
}

absl::StatusOr<PageChain> PageChain::Follow(int directory_fd, const PagesOf& of) {
  PageChain chain;
  ParentWalk walk(directory_fd);
  std::vector<Wanted> wanted;
  for (bool first = true;; first = false) {
    absl::StatusOr<Pagemap> pagemap = ReadPagemap(walk.current(), of);
    if (!first && absl::IsNotFound(pagemap.status())) {
      return Bad(walk.current(),
                 absl::StrFormat("a child of it expects the page at 0x%x here, and there is no %s",
                                 wanted.front().start, of.PagemapName()));
    }
    if (!pagemap.ok()) return base::Annotate(pagemap.status(), DirectoryName(walk.current()));
    Level level(walk.current(), *pagemap, chain.files_);
    std::vector<Wanted> parent;
    PREDUMP_RETURN_IF_ERROR(first ? level.TakeAll(chain.runs_, parent)
                                  : level.Take(wanted, chain.runs_, parent));
    if (parent.empty()) break;
    wanted = std::move(parent);
    PREDUMP_RETURN_IF_ERROR(walk.Step(wanted.front().start, of));
  }
  std::sort(chain.runs_.begin(), chain.runs_.end(),
            [](const StoredRun& a, const StoredRun& b) { return a.start < b.start; });
  return chain;
}

const StoredRun* PageChain::Find(uint64_t address) const {
  auto next = std::upper_bound(runs_.begin(), runs_.end(), address,
                               [](uint64_t a, const StoredRun& run) { return a < run.start; });
  if (next == runs_.begin()) return nullptr;
  const StoredRun& run = *std::prev(next);
  return address < run.end() ? &run : nullptr;
}

absl::Status PageChain::Read(uint64_t address, std::span<std::byte> to) const {
  while (!to.empty()) {
    const StoredRun* run = Find(address);
    if (run == nullptr) {
      return absl::NotFoundError(absl::StrFormat("the images hold no page at 0x%x", address));
    }
    const size_t size = std::min<uint64_t>(to.size(), run->end() - address);
    const uint64_t offset = run->offset + (address - run->start);
    const ssize_t n = ::pread(run->fd, to.data(), size, static_cast<off_t>(offset));
    if (n < 0) {
      if (errno == EINTR) continue;
      return base::ErrnoError(errno, "read ", DirectoryName(run->fd));
    }
    if (n == 0) {
      return absl::DataLossError(
          absl::StrFormat("%s was cut while it was read", DirectoryName(run->fd)));
    }
    address += static_cast<uint64_t>(n);
    to = to.subspan(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

}  // namespace predump::images
