// The source's end of a landing's data connection, byte by byte, so that wrong frames can be sent
// as well as right ones.
#ifndef PREDUMP_TESTS_RESTORE_FRAME_SOURCE_H_
#define PREDUMP_TESTS_RESTORE_FRAME_SOURCE_H_

#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "src/base/unique_fd.h"
#include "src/transport/data_format.h"

namespace predump::restore {

class FrameSource {
 public:
  FrameSource() {
    int pair[2] = {-1, -1};
    (void)!::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair);
    ours_ = base::UniqueFd(pair[0]);
    theirs_ = base::UniqueFd(pair[1]);
  }

  base::UniqueFd TakeLandingEnd() { return std::move(theirs_); }
  int fd() const { return ours_.get(); }
  void Hangup() { (void)ours_.Close(); }

  // False: the landing has closed its end.
  bool Send(const void* bytes, size_t size) {
    const char* at = static_cast<const char*>(bytes);
    while (size != 0) {
      const ssize_t sent = ::send(ours_.get(), at, size, MSG_NOSIGNAL);
      if (sent <= 0) return false;
      at += sent;
      size -= static_cast<size_t>(sent);
    }
    return true;
  }
  bool Header(transport::DataKind kind, uint32_t count, uint64_t arg, uint64_t round = 0) {
    transport::DataHeader header = {};
    header.kind = static_cast<uint32_t>(kind);
    header.count = count;
    header.arg = arg;
    header.round = round;
    return Send(&header, sizeof(header));
  }
  bool Map(transport::MapRecord record, const std::string& path = "") {
    record.path_bytes = static_cast<uint32_t>(path.size());
    return Header(transport::DataKind::kMap, 1, 0) && Send(&record, sizeof(record)) &&
           Send(path.data(), path.size());
  }
  // The landing has the mapping at `start` from an earlier round: a snapshot must not map it anew.
  void Keep(uint64_t start) { kept_.insert(start); }
  bool Keeps(uint64_t start) const { return kept_.contains(start); }
  bool MapAnonymous(uint64_t start, uint64_t bytes, uint32_t prot = 3, uint32_t flags = 0) {
    transport::MapRecord record = {};
    record.start = start;
    record.bytes = bytes;
    record.prot = prot;
    record.flags = flags;
    return Map(record);
  }
  bool Ranges(transport::DataKind kind, const std::vector<transport::WireExtent>& extents,
              uint64_t arg = 0) {
    return Header(kind, static_cast<uint32_t>(extents.size()), arg) &&
           Send(extents.data(), extents.size() * sizeof(extents[0]));
  }
  bool Pages(uint64_t start, const std::string& bytes) {
    return Ranges(transport::DataKind::kPages, {{start, bytes.size()}}, bytes.size()) &&
           Send(bytes.data(), bytes.size());
  }
  // The next answer; kind 0 where the landing has hung up.
  transport::DataHeader Answer() {
    transport::DataHeader header = {};
    const ssize_t got = ::recv(ours_.get(), &header, sizeof(header), MSG_WAITALL);
    if (got != static_cast<ssize_t>(sizeof(header))) header = {};
    return header;
  }

 private:
  base::UniqueFd ours_;
  base::UniqueFd theirs_;
  std::set<uint64_t> kept_;
};

}  // namespace predump::restore

#endif  // PREDUMP_TESTS_RESTORE_FRAME_SOURCE_H_
