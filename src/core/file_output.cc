#include "src/core/file_output.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "src/base/clock.h"
#include "src/base/errors.h"

namespace predump::core {
namespace {

// As much as a source has in its hands at a time.
constexpr base::ByteCount kPipeCapacity{1 << 20};

}  // namespace

absl::StatusOr<std::unique_ptr<Output>> FileOutput::Create(const std::string& path, Aside aside) {
  PREDUMP_ASSIGN_OR_RETURN(kernel::PipePair pipe, kernel::PipePair::Create(kPipeCapacity));
  auto output = std::unique_ptr<FileOutput>(new FileOutput(path, std::move(pipe)));
  const size_t slash = path.rfind('/');
  std::string directory = ".";
  if (slash != std::string::npos) directory = slash == 0 ? "/" : path.substr(0, slash);
  output->name_ = slash == std::string::npos ? path : path.substr(slash + 1);
  if (output->name_.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("\"", path, "\" names no file"));
  }
  // Not to be met by chance, nor to be taken by somebody else beforehand.
  output->aside_name_ =
      absl::StrCat(".predump-", ::getpid(), "-", base::MonotonicNanoseconds(), ".tmp");
  output->directory_ = base::UniqueFd(::open(directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!output->directory_.valid()) return base::ErrnoError(errno, "open directory ", directory);
  PREDUMP_RETURN_IF_ERROR(output->OpenAside(aside));
  return output;
}

absl::Status FileOutput::OpenAside(Aside aside) {
  const int directory = directory_.get();
  if (aside == Aside::kUnnamed) {
    fd_ = base::UniqueFd(::openat(directory, ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600));
    // EISDIR: the kernel does not know the flag; EOPNOTSUPP: the file system does not.
    if (!fd_.valid() && errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL) {
      return base::ErrnoError(errno, "create ", path_);
    }
  }
  if (!fd_.valid()) {
    fd_ = base::UniqueFd(::openat(directory, aside_name_.c_str(),
                                  O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!fd_.valid()) return base::ErrnoError(errno, "create ", path_, " (as ", aside_name_, ")");
    named_ = true;
  }
  // The umask may have taken bits away, an inherited access control list may have added some.
  if (::fchmod(fd_.get(), 0600) != 0) return base::ErrnoError(errno, "chmod ", path_);
  return absl::OkStatus();
}

FileOutput::~FileOutput() {
  if (named_) ::unlinkat(directory_.get(), aside_name_.c_str(), 0);
}

absl::Status FileOutput::Explain(const absl::Status& status) const {
  const std::optional<int> error_number = base::ErrnoOf(status);
  const char* why = nullptr;
  if (error_number == ENOSPC) why = "no space is left on that file system";
  if (error_number == EDQUOT) why = "the disk quota is used up";
  if (error_number == EFBIG)
    why = "the file would be larger than the file system or a limit allows";
  if (why == nullptr) return base::Annotate(status, absl::StrCat("write ", path_));
  return base::ErrnoError(*error_number, "write ", path_, ": ", why,
                          "; nothing of it was left there");
}

absl::Status FileOutput::SeekTo(uint64_t offset) const {
  if (::lseek(fd_.get(), static_cast<off_t>(offset), SEEK_SET) >= 0) return absl::OkStatus();
  return Explain(base::ErrnoError(errno == EINVAL ? EFBIG : errno, "lseek"));
}

absl::Status FileOutput::Write(uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written =
        ::pwrite(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return Explain(base::ErrnoError(errno, "pwrite"));
    if (written == 0) return Explain(base::ErrnoError(ENOSPC, "pwrite"));
    bytes = bytes.subspan(static_cast<size_t>(written));
    offset += static_cast<uint64_t>(written);
  }
  return absl::OkStatus();
}

absl::Status FileOutput::Take(pagemap::PageSource& source, std::span<const Placement> placements) {
  if (placements.size() == 1) {
    PREDUMP_RETURN_IF_ERROR(SeekTo(placements.front().offset));
    return Explain(source.PushTo(fd_.get()));
  }
  PREDUMP_RETURN_IF_ERROR(source.PushTo(pipe_.write_end()));
  for (const Placement& placement : placements) {
    PREDUMP_RETURN_IF_ERROR(SeekTo(placement.offset));
    PREDUMP_RETURN_IF_ERROR(
        Explain(kernel::SpliceAll(pipe_.read_end(), fd_.get(), placement.bytes, /*more=*/false)));
  }
  return absl::OkStatus();
}

absl::Status FileOutput::Finish(uint64_t size) {
  // The hole at the end, if there is one.
  if (::ftruncate(fd_.get(), static_cast<off_t>(size)) != 0) {
    return Explain(base::ErrnoError(errno, "ftruncate"));
  }
  if (::fsync(fd_.get()) != 0) return Explain(base::ErrnoError(errno, "fsync"));
  if (!named_) {
    // A name cannot be taken over by linkat, only by rename.
    const std::string unnamed = absl::StrCat("/proc/self/fd/", fd_.get());
    if (::linkat(AT_FDCWD, unnamed.c_str(), directory_.get(), aside_name_.c_str(),
                 AT_SYMLINK_FOLLOW) != 0) {
      return Explain(base::ErrnoError(errno, "link as ", aside_name_));
    }
    named_ = true;
  }
  PREDUMP_RETURN_IF_ERROR(Explain(fd_.Close()));
  if (::renameat(directory_.get(), aside_name_.c_str(), directory_.get(), name_.c_str()) != 0) {
    return Explain(base::ErrnoError(errno, "rename ", aside_name_));
  }
  named_ = false;
  return absl::OkStatus();
}

}  // namespace predump::core
