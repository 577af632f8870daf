#include "src/pagemap/mapped_files.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/kernel/process_memory.h"

namespace predump::pagemap {
namespace {

using base::AddressRange;
using base::ByteCount;
using base::RemoteAddress;

constexpr size_t kRunBytes = 256 << 10;

}  // namespace

absl::StatusOr<base::UniqueFd> OpenMappedFile(const kernel::ProcessHandle& process,
                                              const Vma& vma) {
  return process.OpenProc(absl::StrCat("map_files/", vma.range.ToString()), O_RDONLY);
}

bool ReadMappedFile(int fd, const Vma& vma, RemoteAddress page, std::span<std::byte> out) {
  uint64_t offset = vma.file_offset_bytes + (page - vma.range.start()).value();
  while (!out.empty()) {
    const ssize_t got = ::pread(fd, out.data(), out.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return false;
    if (got == 0) break;
    out = out.subspan(static_cast<size_t>(got));
    offset += static_cast<uint64_t>(got);
  }
  std::fill(out.begin(), out.end(), std::byte{0});
  return true;
}

absl::StatusOr<MappedFiles> MappedFiles::Create(const kernel::ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(base::MappedRegion buffer,
                           base::MappedRegion::Anonymous(2 * kRunBytes, /*populate=*/true));
  return MappedFiles(process, std::move(buffer));
}

void MappedFiles::Prepare(const Vma& vma) {
  base::UniqueFd& file = files_[{vma.device, vma.inode}];
  if (file.valid()) return;
  absl::StatusOr<base::UniqueFd> opened = OpenMappedFile(*process_, vma);
  // A running process may have mapped another file there meanwhile. Its device numbers would not
  // tell: those of maps and of fstat(2) differ on some file systems.
  struct stat info;
  if (!opened.ok() || ::fstat(opened->get(), &info) != 0 || info.st_ino != vma.inode) return;
  file = *std::move(opened);
}

absl::StatusOr<MappedFiles::Comparison> MappedFiles::Compare(const Vma& vma,
                                                             const ExtentSet& pages) {
  Comparison comparison;
  if (pages.empty()) return comparison;
  Prepare(vma);
  const int fd = files_[{vma.device, vma.inode}].get();
  for (const Extent& extent : pages.extents()) {
    for (uint64_t at = extent.start().value(); at < extent.end().value(); at += kRunBytes) {
      const Extent run =
          AddressRange::FromOrdered(at, std::min(extent.end().value(), at + kRunBytes));
      if (fd < 0) {
        comparison.unknown.Add(run);
      } else {
        PREDUMP_RETURN_IF_ERROR(CompareRun(fd, vma, run, comparison));
      }
    }
  }
  return comparison;
}

absl::Status MappedFiles::CompareRun(int fd, const Vma& vma, Extent run, Comparison& comparison) {
  const std::span<std::byte> memory = buffer_.bytes().first(run.size().value());
  const std::span<std::byte> file = buffer_.bytes().subspan(kRunBytes, run.size().value());
  PREDUMP_ASSIGN_OR_RETURN(ByteCount got,
                           kernel::ReadProcessMemory(*process_, std::span(&run, 1), memory));
  if (got < run.size() || !ReadMappedFile(fd, vma, run.start(), file)) {
    comparison.unknown.Add(run);
    return absl::OkStatus();
  }
  const uint64_t page = base::PageSize();
  for (uint64_t offset = 0; offset < run.size().value(); offset += page) {
    if (memcmp(memory.data() + offset, file.data() + offset, page) != 0) continue;
    const uint64_t start = run.start().value() + offset;
    comparison.equal.Add(AddressRange::FromOrdered(start, start + page));
  }
  return absl::OkStatus();
}

}  // namespace predump::pagemap
