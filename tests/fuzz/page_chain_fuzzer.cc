// Pagemaps of a directory and its parents, whatever is in them. What is accepted must be what
// readers rely on: runs in order, each within its file, and the same after it was written anew.
//
// Input: a byte (low bits: pages in each pages file; the highest: the oldest directory's parent is
// the newest), then for each of kLevels pagemaps a length of two bytes and so many bytes behind the
// magic numbers.
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>

#include "src/base/unique_fd.h"
#include "src/images/image_file.h"
#include "src/images/page_chain.h"
#include "tests/fuzz/scratch_directory.h"

namespace predump {
namespace {

constexpr size_t kLevels = 3;
constexpr images::PagesOf kTask{images::PagesOf::Kind::kTask, 7};

void Require(bool condition) {
  if (!condition) std::abort();
}

class Directories {
 public:
  Directories() {
    for (size_t i = 0; i < kLevels; ++i) {
      const std::string path = scratch_.path() + "/" + std::to_string(i);
      Require(::mkdir(path.c_str(), 0700) == 0);
      fds_[i] = base::UniqueFd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
      Require(fds_[i].valid());
      if (i > 0) Require(::symlinkat(Name(i - 1).c_str(), fds_[i].get(), "parent") == 0);
    }
  }

  int newest() const { return fds_[kLevels - 1].get(); }

  void Fill(std::span<const uint8_t> input) {
    const uint8_t how = input.empty() ? 0 : input[0];
    input = input.subspan(std::min<size_t>(1, input.size()));
    ::unlinkat(fds_[0].get(), "parent", 0);
    if ((how & 0x80) != 0) {
      Require(::symlinkat(Name(kLevels - 1).c_str(), fds_[0].get(), "parent") == 0);
    }
    for (const base::UniqueFd& fd : fds_) {
      size_t size = 0;
      if (input.size() >= 2) {
        size = std::min<size_t>(input[0] | input[1] << 8, input.size() - 2);
        input = input.subspan(2);
      }
      WritePagemap(fd.get(), input.first(size));
      input = input.subspan(size);
      const base::UniqueFd pages(
          ::openat(fd.get(), "pages-1.img", O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
      Require(::ftruncate(pages.get(), (how & 0x7f) * 4096) == 0);
    }
  }

 private:
  static std::string Name(size_t level) { return "../" + std::to_string(level); }

  static void WritePagemap(int directory_fd, std::span<const uint8_t> entries) {
    const std::array<uint32_t, 2> magic = {images::kCommonMagic,
                                           static_cast<uint32_t>(images::ImageMagic::kPagemap)};
    const base::UniqueFd fd(::openat(directory_fd, kTask.PagemapName().c_str(),
                                     O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    Require(::write(fd.get(), magic.data(), sizeof magic) == sizeof magic);
    Require(::write(fd.get(), entries.data(), entries.size()) ==
            static_cast<ssize_t>(entries.size()));
  }

  ScratchDirectory scratch_;
  std::array<base::UniqueFd, kLevels> fds_;
};

void CheckPagemap(int directory_fd) {
  const absl::StatusOr<images::Pagemap> pagemap = images::ReadPagemap(directory_fd, kTask);
  if (!pagemap.ok()) return;
  uint64_t end = 0;
  for (const images::PagemapEntry& entry : pagemap->entries) {
    Require(entry.start >= end && entry.end() > entry.start);
    Require(images::CheckPagemapEntry(entry, kTask.kind).ok());
    end = entry.end();
  }
  Require(images::FirstNotInParent(*pagemap, *pagemap) == std::nullopt);
  // Entries of 2^32 pages and more are split, and then not the same.
  if (std::all_of(pagemap->entries.begin(), pagemap->entries.end(),
                  [](const auto& entry) { return entry.pages < uint64_t{1} << 32; })) {
    Require(images::WritePagemap(directory_fd, kTask, *pagemap).ok());
    const absl::StatusOr<images::Pagemap> again = images::ReadPagemap(directory_fd, kTask);
    Require(again.ok() && again->pages_id == pagemap->pages_id &&
            again->entries == pagemap->entries);
  }
}

void CheckChain(const images::PageChain& chain) {
  uint64_t end = 0;
  for (const images::StoredRun& run : chain.runs()) {
    Require(run.start >= end && run.pages > 0);
    end = run.end();
    struct stat stat;
    Require(::fstat(run.fd, &stat) == 0);
    Require(run.offset + run.pages * 4096 <= static_cast<uint64_t>(stat.st_size));
    Require(chain.Find(run.start) == &run && chain.Find(run.end() - 1) == &run);
    std::array<std::byte, 4096> page;
    Require(chain.Read(run.end() - 4096, page).ok());
  }
}

}  // namespace
}  // namespace predump

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static predump::Directories directories;
  directories.Fill({data, size});
  const absl::StatusOr<predump::images::PageChain> chain =
      predump::images::PageChain::Open(directories.newest(), predump::kTask);
  if (chain.ok()) predump::CheckChain(*chain);
  predump::CheckPagemap(directories.newest());
  return 0;
}
