// One direction of a connection, with limits to our patience.
//
// Thread rule: an object belongs to one thread at a time.
#ifndef PREDUMP_PAGESERVER_PATIENT_READER_H_
#define PREDUMP_PAGESERVER_PATIENT_READER_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace predump::pageserver {

class PatientReader {
 public:
  // `socket` is non-blocking. When `stop_fd` can be read, the server ends. Both are borrowed.
  PatientReader(int socket, int stop_fd, absl::Duration patience)
      : socket_(socket), stop_fd_(stop_fd), patience_(patience) {}

  int socket() const { return socket_; }

  // Waits until something can be read. Cancelled: the server ends. DeadlineExceeded: the peer said
  // nothing for `patience`.
  absl::Status Wait() const;

  // Exactly `size` bytes. Errors: as Wait; Unavailable: the peer left; OutOfRange: it left before
  // the first of them.
  absl::Status Read(void* to, size_t size) const;

  // The same, of bytes that nobody wants.
  absl::Status Discard(uint64_t bytes) const;

 private:
  int socket_;
  int stop_fd_;
  absl::Duration patience_;
};

}  // namespace predump::pageserver

#endif  // PREDUMP_PAGESERVER_PATIENT_READER_H_
