#include "src/pageserver/payload_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"

namespace predump::pageserver {
namespace {

constexpr base::ByteCount kPipeBytes(1u << 20);
constexpr uint64_t kCopyBytes = 64u << 10;
// The disk starts on what has come while more comes: less is left to do when a round is synced.
constexpr uint64_t kWritebackBytes = 32u << 20;

constexpr char kAsideSuffix[] = ".sorting";

absl::StatusOr<base::UniqueFd> CreateFile(int directory_fd, const std::string& name) {
  base::UniqueFd fd(
      ::openat(directory_fd, name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (!fd.valid()) return base::ErrnoError(errno, "create ", name);
  return fd;
}

}  // namespace

absl::StatusOr<PayloadFile> PayloadFile::Create(int directory_fd, std::string name) {
  PREDUMP_ASSIGN_OR_RETURN(base::UniqueFd fd, CreateFile(directory_fd, name));
  PREDUMP_ASSIGN_OR_RETURN(kernel::PipePair pipe, kernel::PipePair::Create(kPipeBytes));
  return PayloadFile(directory_fd, std::move(name), std::move(fd), std::move(pipe));
}

absl::Status PayloadFile::FileError(int error_number, const char* what) const {
  return base::ErrnoError(error_number, what, " ", name_);
}

absl::StatusOr<uint64_t> PayloadFile::TakeFrom(int socket, uint64_t most) {
  const uint64_t size = std::min(most, pipe_.capacity().value());
  for (;;) {
    const ssize_t got = ::splice(socket, nullptr, pipe_.write_end(), nullptr, size,
                                 SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    if (got > 0) {
      const auto bytes = static_cast<uint64_t>(got);
      file_status_ = DrainPipe(bytes);
      return bytes;
    }
    if (got == 0) return absl::AbortedError("the connection ended within pages");
    if (errno == EAGAIN) return 0;
    if (errno != EINTR) return base::ErrnoError(errno, "receive pages");
  }
}

absl::Status PayloadFile::DrainPipe(uint64_t bytes) {
  char buffer[kCopyBytes];
  while (bytes > 0) {
    if (splices_) {
      auto offset = static_cast<loff_t>(size_);
      const ssize_t moved =
          ::splice(pipe_.read_end(), nullptr, fd_.get(), &offset, bytes, SPLICE_F_MOVE);
      if (moved > 0) {
        size_ += static_cast<uint64_t>(moved);
        bytes -= static_cast<uint64_t>(moved);
        continue;
      }
      if (moved < 0 && errno == EINTR) continue;
      if (moved == 0) return absl::DataLossError(absl::StrCat("write ", name_, ": no progress"));
      if (errno != EINVAL) return FileError(errno, "write");
      splices_ = false;  // not into files of this file system
    }
    const ssize_t got = ::read(pipe_.read_end(), buffer, std::min<uint64_t>(bytes, sizeof buffer));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return base::ErrnoError(got < 0 ? errno : EPIPE, "read what was received");
    PREDUMP_RETURN_IF_ERROR(Append(buffer, static_cast<uint64_t>(got)));
    bytes -= static_cast<uint64_t>(got);
  }
  StartWriteback();
  return absl::OkStatus();
}

absl::Status PayloadFile::Append(const char* bytes, uint64_t size) {
  while (size > 0) {
    const ssize_t written = ::pwrite(fd_.get(), bytes, size, static_cast<off_t>(size_));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return FileError(errno, "write");
    if (written == 0) return absl::DataLossError(absl::StrCat("write ", name_, ": no progress"));
    bytes += written;
    size -= static_cast<uint64_t>(written);
    size_ += static_cast<uint64_t>(written);
  }
  StartWriteback();
  return absl::OkStatus();
}

void PayloadFile::StartWriteback() {
  if (size_ - writing_back_ < kWritebackBytes) return;
  // Advice: a filesystem that cannot is synced all at once later.
  ::sync_file_range(fd_.get(), static_cast<off_t>(writing_back_),
                    static_cast<off_t>(size_ - writing_back_), SYNC_FILE_RANGE_WRITE);
  writing_back_ = size_;
}

absl::Status PayloadFile::CopyPiece(const Piece& piece, int to, uint64_t to_offset) const {
  auto from = static_cast<loff_t>(piece.offset);
  auto at = static_cast<loff_t>(to_offset);
  for (uint64_t left = piece.bytes; left > 0;) {
    const ssize_t copied = ::copy_file_range(fd_.get(), &from, to, &at, left, 0);
    if (copied < 0 && errno == EINTR) continue;
    if (copied < 0) return FileError(errno, "put in order");
    if (copied == 0) return absl::DataLossError(absl::StrCat(name_, " is shorter than it was"));
    left -= static_cast<uint64_t>(copied);
  }
  return absl::OkStatus();
}

absl::Status PayloadFile::Rearrange(const std::vector<Piece>& pieces) {
  uint64_t end = 0;
  bool in_place = true;
  for (const Piece& piece : pieces) {
    in_place = in_place && piece.offset == end;
    end += piece.bytes;
  }
  if (in_place) {
    if (end != size_ && ::ftruncate(fd_.get(), static_cast<off_t>(end)) != 0) {
      return FileError(errno, "truncate");
    }
    size_ = end;
    return absl::OkStatus();
  }
  const std::string aside = absl::StrCat(name_, kAsideSuffix);
  PREDUMP_ASSIGN_OR_RETURN(base::UniqueFd sorted, CreateFile(directory_fd_, aside));
  uint64_t at = 0;
  for (const Piece& piece : pieces) {
    PREDUMP_RETURN_IF_ERROR(CopyPiece(piece, sorted.get(), at));
    at += piece.bytes;
  }
  if (::renameat(directory_fd_, aside.c_str(), directory_fd_, name_.c_str()) != 0) {
    return FileError(errno, "rename over");
  }
  fd_ = std::move(sorted);
  size_ = end;
  writing_back_ = 0;
  return absl::OkStatus();
}

absl::Status PayloadFile::Close() { return base::Annotate(fd_.Close(), name_); }

}  // namespace predump::pageserver
