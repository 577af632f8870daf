#include "src/images/image_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "src/base/errors.h"

namespace predump::images {
namespace {

constexpr size_t kFlushBytes = 1u << 16;
constexpr size_t kReadBytes = 1u << 16;

void AppendU32(uint32_t value, std::string& to) {
  char bytes[sizeof value];
  ::memcpy(bytes, &value, sizeof value);
  to.append(bytes, sizeof bytes);
}

// What stands before the type's own magic; 0: nothing.
uint32_t FamilyMagic(ImageMagic magic) {
  switch (magic) {
    case ImageMagic::kInventory:
      return 0;
    case ImageMagic::kStats:
      return kServiceMagic;
    default:
      return kCommonMagic;
  }
}

}  // namespace

absl::StatusOr<ImageWriter> ImageWriter::Create(int directory_fd, const std::string& name,
                                                ImageMagic magic) {
  base::UniqueFd fd(::openat(directory_fd, name.c_str(),
                             O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644));
  if (!fd.valid()) return base::ErrnoError(errno, "create ", name);
  ImageWriter writer(std::move(fd), name);
  if (const uint32_t family = FamilyMagic(magic); family != 0) AppendU32(family, writer.gathered_);
  AppendU32(static_cast<uint32_t>(magic), writer.gathered_);
  return writer;
}

absl::Status ImageWriter::Add(const google::protobuf::MessageLite& message) {
  const size_t size = message.ByteSizeLong();
  if (size > kMaxEntryBytes) {
    return absl::ResourceExhaustedError(absl::StrCat("an entry of ", size, " bytes for ", name_));
  }
  AppendU32(static_cast<uint32_t>(size), gathered_);
  if (!message.AppendToString(&gathered_)) {
    return absl::InternalError(absl::StrCat(
        "an entry for ", name_, " lacks a required field: ", message.InitializationErrorString()));
  }
  return gathered_.size() >= kFlushBytes ? Flush() : absl::OkStatus();
}

absl::Status ImageWriter::AddRaw(absl::string_view bytes) {
  gathered_.append(bytes.data(), bytes.size());
  return gathered_.size() >= kFlushBytes ? Flush() : absl::OkStatus();
}

absl::Status ImageWriter::Flush() {
  size_t done = 0;
  while (done < gathered_.size()) {
    const ssize_t n = ::write(fd_.get(), gathered_.data() + done, gathered_.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return base::ErrnoError(errno, "write ", name_);
    done += static_cast<size_t>(n);
  }
  gathered_.clear();
  return absl::OkStatus();
}

absl::Status ImageWriter::Finish() {
  PREDUMP_RETURN_IF_ERROR(Flush());
  return base::Annotate(fd_.Close(), name_);
}

absl::Status ImageReader::Error(absl::string_view what) const {
  return absl::DataLossError(absl::StrCat(name_, ": ", what));
}

absl::StatusOr<ImageReader> ImageReader::Open(int directory_fd, const std::string& name,
                                              ImageMagic magic) {
  // O_NONBLOCK: a FIFO of that name shall not hold us up; S_ISREG below refuses it.
  base::UniqueFd fd(::openat(directory_fd, name.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return base::ErrnoError(errno, "open ", name);
  struct stat stat;
  if (::fstat(fd.get(), &stat) != 0) return base::ErrnoError(errno, "stat ", name);
  ImageReader reader(std::move(fd), name, static_cast<uint64_t>(stat.st_size));
  if (!S_ISREG(stat.st_mode)) return reader.Error("not a regular file");
  for (const uint32_t expected : {FamilyMagic(magic), static_cast<uint32_t>(magic)}) {
    if (expected == 0) continue;
    if (reader.left_ < sizeof expected) return reader.Error("too short to be an image of CRIU's");
    PREDUMP_ASSIGN_OR_RETURN(const std::string bytes, reader.Take(sizeof expected));
    uint32_t found;
    ::memcpy(&found, bytes.data(), sizeof found);
    if (found != expected) {
      return reader.Error(absl::StrFormat(
          "not the image its name says (magic 0x%08x, expected 0x%08x)", found, expected));
    }
  }
  return reader;
}

absl::StatusOr<std::string> ImageReader::Take(size_t size) {
  while (gathered_.size() - gathered_at_ < size) {
    gathered_.erase(0, std::exchange(gathered_at_, 0));
    const size_t held = gathered_.size();
    gathered_.resize(std::max(size, kReadBytes));
    const ssize_t n = ::read(fd_.get(), gathered_.data() + held, gathered_.size() - held);
    const int error = errno;
    gathered_.resize(held + static_cast<size_t>(std::max<ssize_t>(n, 0)));
    if (n < 0 && error == EINTR) continue;
    if (n < 0) return base::ErrnoError(error, "read ", name_);
    if (n == 0) return Error("was cut while it was read");
  }
  std::string bytes = gathered_.substr(gathered_at_, size);
  gathered_at_ += size;
  left_ -= size;
  return bytes;
}

absl::StatusOr<bool> ImageReader::Next(google::protobuf::MessageLite& message) {
  if (left_ == 0) return false;
  uint32_t size;
  if (left_ < sizeof size) return Error("ends within the length of an entry");
  PREDUMP_ASSIGN_OR_RETURN(const std::string length, Take(sizeof size));
  ::memcpy(&size, length.data(), sizeof size);
  if (size > kMaxEntryBytes) return Error(absl::StrCat("has an entry of ", size, " bytes"));
  if (size > left_) return Error("ends within an entry");
  PREDUMP_ASSIGN_OR_RETURN(const std::string bytes, Take(size));
  if (!message.ParseFromString(bytes)) {
    return Error("has an entry that is not what it should be, or lacks a required field");
  }
  return true;
}

absl::StatusOr<std::string> ImageReader::Raw(size_t size) {
  if (size > left_) return Error(absl::StrCat("ends within ", size, " bytes of data"));
  return Take(size);
}

absl::Status ImageReader::SkipRaw(size_t size) {
  if (size > left_) return Error(absl::StrCat("ends within ", size, " bytes of data"));
  left_ -= size;
  const size_t gathered = std::min(size, gathered_.size() - gathered_at_);
  gathered_at_ += gathered;
  if (::lseek(fd_.get(), static_cast<off_t>(size - gathered), SEEK_CUR) < 0) {
    return base::ErrnoError(errno, "seek in ", name_);
  }
  return absl::OkStatus();
}

absl::Status ImageReader::Single(google::protobuf::MessageLite& message) {
  PREDUMP_ASSIGN_OR_RETURN(const bool found, Next(message));
  if (!found) return Error("has no entry");
  if (left_ != 0) return Error("has more behind its one entry");
  return absl::OkStatus();
}

}  // namespace predump::images
