#include "src/restore/stored_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "src/base/errors.h"
#include "src/images/image_constants.h"
#include "src/images/image_set.h"
#include "src/kernel/process.h"
#include "src/kernel/procfs_maps.h"
#include "src/transport/data_format.h"

namespace predump::restore::internal {
namespace {

using images::StoredRun;
using transport::WireExtent;

bool IsKernelProvided(const criu::vma_entry& vma) {
  return (vma.status() & (images::kVmaVdso | images::kVmaVvar | images::kVmaVsyscall)) != 0;
}

bool MayHavePages(const criu::vma_entry& vma) {
  return !IsKernelProvided(vma) && (vma.flags() & MAP_PRIVATE) != 0;
}

uint32_t WireFlags(const criu::vma_entry& vma, bool file) {
  const bool shared = (vma.flags() & MAP_SHARED) != 0;
  uint32_t flags = 0;
  if (shared) flags |= transport::kMapShared;
  if (file) flags |= transport::kMapFile;
  if (!file && (vma.flags() & MAP_GROWSDOWN) != 0) flags |= transport::kMapGrowsDown;
  if ((vma.flags() & MAP_NORESERVE) != 0) flags |= transport::kMapNoReserve;
  if ((vma.madv() & (1ull << MADV_HUGEPAGE)) != 0) {
    flags |= transport::kMapHugePages;
  } else if ((vma.madv() & (1ull << MADV_NOHUGEPAGE)) != 0) {
    flags |= transport::kMapNoHugePages;
  }
  // How the file was opened; old images leave it to the protection.
  const bool writable =
      vma.has_fdflags() ? (vma.fdflags() & O_ACCMODE) == O_RDWR : (vma.prot() & PROT_WRITE) != 0;
  if (shared && (writable || (vma.prot() & PROT_WRITE) != 0)) flags |= transport::kMapWritable;
  return flags;
}

absl::Status SendLayout(const proto::ProcessState& state, transport::DataWriter& data) {
  const images::FileIndex files(state);
  for (const criu::vma_entry& vma : state.mm().vmas()) {
    if (IsKernelProvided(vma)) continue;
    const bool file = (vma.status() & (images::kVmaFilePrivate | images::kVmaFileShared)) != 0;
    transport::MapRecord record = {};
    record.start = vma.start();
    record.bytes = vma.end() - vma.start();
    record.file_offset = file ? vma.pgoff() : 0;
    record.prot = vma.prot();
    record.flags = WireFlags(vma, file);
    const std::string path =
        file ? files.FindRegular(static_cast<uint32_t>(vma.shmid()))->name() : "";
    PREDUMP_RETURN_IF_ERROR(data.Map(record, path));
  }
  return absl::OkStatus();
}

// All of `run`, from the page cache into the socket.
absl::Status PushRun(const StoredRun& run, transport::DataWriter& data) {
  off_t offset = static_cast<off_t>(run.offset);
  uint64_t left = run.end() - run.start;
  while (left > 0) {
    const ssize_t sent = ::sendfile(data.fd(), run.fd, &offset, left);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) {
      return data.Explain(base::ErrnoError(
          errno, absl::StrFormat("send the pages at %x to the process that is made", run.start)));
    }
    if (sent == 0) {
      return absl::DataLossError(absl::StrFormat(
          "a pages file ends before the pages at %x: it was cut while it was read", run.start));
    }
    left -= static_cast<uint64_t>(sent);
  }
  return absl::OkStatus();
}

// What goes into one frame.
class Frame {
 public:
  explicit Frame(transport::DataWriter& data) : data_(data) {}

  absl::Status Add(StoredRun run) {
    while (run.pages > 0) {
      const uint64_t room = (transport::kMaxPayloadBytes - bytes_) / images::kPageBytes;
      StoredRun part = run;
      part.pages = std::min(run.pages, room);
      parts_.push_back(part);
      extents_.push_back({part.start, part.end() - part.start});
      bytes_ += part.end() - part.start;
      run.start = part.end();
      run.offset += part.end() - part.start;
      run.pages -= part.pages;
      if (bytes_ == transport::kMaxPayloadBytes ||
          extents_.size() == transport::kMaxExtentsPerFrame) {
        PREDUMP_RETURN_IF_ERROR(Flush());
      }
    }
    return absl::OkStatus();
  }

  absl::Status Flush() {
    if (parts_.empty()) return absl::OkStatus();
    PREDUMP_RETURN_IF_ERROR(data_.PagesHeader(extents_));
    for (const StoredRun& part : parts_) PREDUMP_RETURN_IF_ERROR(PushRun(part, data_));
    parts_.clear();
    extents_.clear();
    bytes_ = 0;
    return absl::OkStatus();
  }

 private:
  transport::DataWriter& data_;
  std::vector<StoredRun> parts_;
  std::vector<WireExtent> extents_;
  uint64_t bytes_ = 0;
};

// The process's vDSO; null where it has none, or has it in pieces.
const criu::vma_entry* FindVdso(const proto::ProcessState& state) {
  const criu::vma_entry* found = nullptr;
  for (const criu::vma_entry& vma : state.mm().vmas()) {
    if ((vma.status() & images::kVmaVdso) == 0) continue;
    if (found != nullptr) return nullptr;
    found = &vma;
  }
  return found;
}

}  // namespace

absl::StatusOr<std::vector<StoredRun>> PrivateRuns(const proto::ProcessState& state,
                                                   const images::PageChain& chain) {
  std::vector<StoredRun> runs;
  const auto& vmas = state.mm().vmas();
  auto vma = vmas.begin();
  for (StoredRun run : chain.runs()) {
    while (run.pages > 0) {
      while (vma != vmas.end() && vma->end() <= run.start) ++vma;
      if (vma == vmas.end() || vma->start() > run.start ||
          (!MayHavePages(*vma) && (vma->status() & images::kVmaVdso) == 0)) {
        return absl::DataLossError(absl::StrFormat(
            "the images hold pages at %x, where the process had no private memory: pagemap and mm "
            "do not belong together",
            run.start));
      }
      StoredRun part = run;
      part.pages = (std::min(run.end(), vma->end()) - run.start) / images::kPageBytes;
      if (MayHavePages(*vma)) runs.push_back(part);
      run.start = part.end();
      run.offset += part.end() - part.start;
      run.pages -= part.pages;
    }
  }
  return runs;
}

absl::Status SendMemory(const proto::ProcessState& state, const std::vector<StoredRun>& runs,
                        transport::DataWriter& data) {
  PREDUMP_RETURN_IF_ERROR(SendLayout(state, data));
  Frame frame(data);
  for (const StoredRun& run : runs) PREDUMP_RETURN_IF_ERROR(frame.Add(run));
  PREDUMP_RETURN_IF_ERROR(frame.Flush());
  return data.Final(0);
}

absl::StatusOr<bool> HasOurVdso(const proto::ProcessState& state, const images::PageChain& chain) {
  const criu::vma_entry* stored = FindVdso(state);
  if (stored == nullptr) return absl::NotFoundError("the process has no vDSO");
  uint64_t stored_vvar_bytes = 0;
  for (const criu::vma_entry& vma : state.mm().vmas()) {
    if ((vma.status() & images::kVmaVvar) != 0) stored_vvar_bytes += vma.end() - vma.start();
  }
  PREDUMP_ASSIGN_OR_RETURN(const kernel::ProcessHandle self,
                           kernel::ProcessHandle::Open(::getpid()));
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<kernel::MapsEntry> maps, kernel::ReadMaps(self));
  std::span<const std::byte> ours;
  uint64_t vvar_bytes = 0;
  for (const kernel::MapsEntry& entry : maps) {
    if (entry.path == "[vdso]") {
      ours = {reinterpret_cast<const std::byte*>(entry.range.start().value()),
              entry.range.size().value()};
    } else if (entry.path.starts_with("[vvar")) {
      vvar_bytes += entry.range.size().value();
    }
  }
  if (ours.size() != stored->end() - stored->start() || vvar_bytes != stored_vvar_bytes) {
    return false;
  }
  std::vector<std::byte> bytes(ours.size());
  PREDUMP_RETURN_IF_ERROR(chain.Read(stored->start(), bytes));
  return std::memcmp(bytes.data(), ours.data(), ours.size()) == 0;
}

}  // namespace predump::restore::internal
