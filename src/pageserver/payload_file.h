// A file of pages that grows by what a connection brings.
//
// Bytes go from the socket through a pipe into the file by splice(2), untouched by user space;
// into files of file systems that refuse that, by plain calls. Thread rule: one thread at a time.
#ifndef PREDUMP_PAGESERVER_PAYLOAD_FILE_H_
#define PREDUMP_PAGESERVER_PAYLOAD_FILE_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/base/unique_fd.h"
#include "src/kernel/splice.h"

namespace predump::pageserver {

class PayloadFile {
 public:
  // Makes `name` in `directory_fd`, which must stay open as long as this object lives.
  static absl::StatusOr<PayloadFile> Create(int directory_fd, std::string name);

  const std::string& name() const { return name_; }
  uint64_t size() const { return size_; }

  // Takes at most `most` of the bytes that have arrived on `socket`, and appends them. Returns how
  // many it took; 0: none has arrived. Errors, of the connection alone: Aborted it has ended; else
  // from the socket. Precondition: file_status() is OK.
  absl::StatusOr<uint64_t> TakeFrom(int socket, uint64_t most);
  // What the file has said, with its name (ResourceExhausted: the disk is full). Where it is an
  // error, some of what was taken last is lost.
  const absl::Status& file_status() const { return file_status_; }

  struct Piece {
    uint64_t offset = 0;
    uint64_t bytes = 0;
  };
  // The file consists of these pieces of it from now on, one behind the other.
  absl::Status Rearrange(const std::vector<Piece>& pieces);

  absl::Status Close();

 private:
  PayloadFile(int directory_fd, std::string name, base::UniqueFd fd, kernel::PipePair pipe)
      : directory_fd_(directory_fd),
        name_(std::move(name)),
        fd_(std::move(fd)),
        pipe_(std::move(pipe)) {}

  absl::Status DrainPipe(uint64_t bytes);
  absl::Status Append(const char* bytes, uint64_t size);
  void StartWriteback();
  absl::Status CopyPiece(const Piece& piece, int to, uint64_t to_offset) const;
  absl::Status FileError(int error_number, const char* what) const;

  int directory_fd_;
  std::string name_;
  base::UniqueFd fd_;
  kernel::PipePair pipe_;
  bool splices_ = true;
  uint64_t size_ = 0;
  uint64_t writing_back_ = 0;  // up to here the disk has been told
  absl::Status file_status_;
};

}  // namespace predump::pageserver

#endif  // PREDUMP_PAGESERVER_PAYLOAD_FILE_H_
