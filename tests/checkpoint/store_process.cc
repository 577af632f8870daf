// store_process PID DIRECTORY [--leave-running]: a process as a whole set of images, by the
// shortest way: freeze, capture, copy. For tests of the images alone; predump itself stores them
// through its page server.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "src/base/errors.h"
#include "src/base/unique_fd.h"
#include "src/checkpoint/capture.h"
#include "src/checkpoint/host_facts.h"
#include "src/images/pagemap_image.h"
#include "src/images/state_images.h"
#include "src/kernel/freezer.h"
#include "src/kernel/pagemap_scan.h"
#include "src/kernel/process.h"
#include "src/pagemap/vma.h"

namespace predump::checkpoint {
namespace {

constexpr uint32_t kPagesId = 1;
constexpr size_t kBlockPages = 512;

// Appends the pages of `vma` that differ from what a new mapping would have, and the vDSO whole,
// which CRIU asks for.
absl::Status AddPages(const kernel::PagemapFile& pagemap, const pagemap::Vma& vma,
                      images::Pagemap& to) {
  const bool vdso = vma.kind == pagemap::VmaKind::kVdso;
  if (!vdso && !vma.is_private_memory()) return absl::OkStatus();
  std::vector<uint64_t> entries(vma.range.pages().value());
  PREDUMP_ASSIGN_OR_RETURN(const size_t count, pagemap.ReadEntries(vma.range, entries));
  for (size_t i = 0; i < count; ++i) {
    const uint64_t bits = entries[i];
    const bool held = (bits & (kernel::kPagemapPresent | kernel::kPagemapSwapped)) != 0;
    const bool of_file = (bits & kernel::kPagemapFileOrShared) != 0;
    if (!vdso && (!held || of_file)) continue;
    const uint64_t address = vma.range.start().value() + i * 4096;
    if (!to.entries.empty() && to.entries.back().end() == address) {
      ++to.entries.back().pages;
    } else {
      to.entries.push_back({.start = address, .pages = 1, .flags = images::kPagePresent});
    }
  }
  return absl::OkStatus();
}

absl::Status CopyPages(int memory, const images::Pagemap& pagemap, int pages) {
  std::vector<char> block(kBlockPages * 4096);
  for (const images::PagemapEntry& entry : pagemap.entries) {
    for (uint64_t at = entry.start; at < entry.end();) {
      const size_t bytes = std::min<uint64_t>(block.size(), entry.end() - at);
      if (::pread(memory, block.data(), bytes, static_cast<off_t>(at)) !=
          static_cast<ssize_t>(bytes)) {
        return base::ErrnoError(errno, "read memory");
      }
      if (::write(pages, block.data(), bytes) != static_cast<ssize_t>(bytes)) {
        return base::ErrnoError(errno, "write pages");
      }
      at += bytes;
    }
  }
  return absl::OkStatus();
}

absl::Status StorePages(const kernel::ProcessHandle& process, const pagemap::VmaList& vmas,
                        uint32_t pid, int directory) {
  images::Pagemap to{.pages_id = kPagesId, .entries = {}};
  PREDUMP_ASSIGN_OR_RETURN(const auto pagemap, kernel::PagemapFile::Open(process));
  for (const pagemap::Vma& vma : vmas.vmas()) {
    PREDUMP_RETURN_IF_ERROR(AddPages(pagemap, vma, to));
  }
  PREDUMP_ASSIGN_OR_RETURN(const base::UniqueFd memory, process.OpenProc("mem", O_RDONLY));
  const base::UniqueFd pages(::openat(directory, images::PagesName(kPagesId).c_str(),
                                      O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!pages.valid()) return base::ErrnoError(errno, "create pages");
  PREDUMP_RETURN_IF_ERROR(CopyPages(memory.get(), to, pages.get()));
  return images::WritePagemap(directory, {.kind = images::PagesOf::Kind::kTask, .id = pid}, to);
}

absl::Status Store(pid_t pid, const std::string& path, bool leave_running) {
  ::mkdir(path.c_str(), 0700);
  const base::UniqueFd directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory.valid()) return base::ErrnoError(errno, "open ", path);
  PREDUMP_ASSIGN_OR_RETURN(const auto process, kernel::ProcessHandle::Open(pid));
  PREDUMP_ASSIGN_OR_RETURN(auto capturer, Capturer::Create(process, {}));
  PREDUMP_ASSIGN_OR_RETURN(const auto surveyed, pagemap::VmaList::Read(process, true));
  PREDUMP_RETURN_IF_ERROR(capturer.Survey(surveyed));
  PREDUMP_RETURN_IF_ERROR(capturer.NoteSleepers());
  PREDUMP_ASSIGN_OR_RETURN(auto frozen, kernel::FrozenProcess::Freeze(process, absl::Seconds(5)));
  PREDUMP_ASSIGN_OR_RETURN(const auto vmas, pagemap::VmaList::Read(process, false));
  PREDUMP_ASSIGN_OR_RETURN(const auto state, capturer.Capture(frozen, vmas));
  PREDUMP_RETURN_IF_ERROR(StorePages(process, vmas, state.pid(), directory.get()));
  proto::StoredExtra extra;
  extra.set_version(images::kExtraVersion);
  PREDUMP_ASSIGN_OR_RETURN(*extra.mutable_host(), ReadHostFacts());
  PREDUMP_RETURN_IF_ERROR(images::WriteState(directory.get(), state, extra));
  return leave_running ? std::move(frozen).Thaw() : std::move(frozen).Kill();
}

}  // namespace
}  // namespace predump::checkpoint

int main(int argc, char** argv) {
  int pid = 0;
  const bool leave_running = argc == 4 && ::strcmp(argv[3], "--leave-running") == 0;
  if ((argc != 3 && !leave_running) || !absl::SimpleAtoi(argv[1], &pid)) {
    fprintf(stderr, "usage: store_process PID DIRECTORY [--leave-running]\n");
    return 2;
  }
  const absl::Status status = predump::checkpoint::Store(pid, argv[2], leave_running);
  if (status.ok()) return 0;
  fprintf(stderr, "store_process: %s\n", std::string(status.message()).c_str());
  return 1;
}
