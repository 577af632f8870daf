// A CRIU client by hand, on a connection.
#ifndef PREDUMP_TESTS_PAGESERVER_CRIU_PEER_H_
#define PREDUMP_TESTS_PAGESERVER_CRIU_PEER_H_

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <cstdint>
#include <string>
#include <utility>

#include "src/base/unique_fd.h"
#include "src/images/pagemap_image.h"
#include "src/transport/page_server_protocol.h"

namespace predump::pageserver {

class CriuPeer {
 public:
  CriuPeer(base::UniqueFd socket, transport::page_server::HeaderSize size)
      : socket_(std::move(socket)), size_(size) {}

  int fd() const { return socket_.get(); }

  // False where the server does not want it any more.
  bool Send(uint32_t command, uint64_t object, uint64_t address = 0, uint64_t pages = 0) {
    const auto bytes = transport::page_server::Encode({command, pages, address, object}, size_);
    return SendBytes(std::string(bytes.begin(), bytes.begin() + static_cast<size_t>(size_)));
  }

  bool SendBytes(const std::string& bytes) {
    for (size_t done = 0; done < bytes.size();) {
      const ssize_t n =
          ::send(socket_.get(), bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL);
      if (n <= 0) return false;
      done += static_cast<size_t>(n);
    }
    return true;
  }

  // Pages whose every word tells address and `mark`, as ContentOf has them.
  bool SendPages(uint64_t object, uint64_t address, uint64_t pages, unsigned mark,
                 uint32_t flags = images::kPagePresent) {
    if (!Send(flags << 16 | transport::page_server::kAddFlags, object, address, pages))
      return false;
    for (uint64_t i = 0; i < pages; ++i) {
      if (!SendBytes(ContentOf(address + i * 4096, mark))) return false;
    }
    return true;
  }
  bool SendHole(uint64_t object, uint64_t address, uint64_t pages) {
    return Send(images::kPageParent << 16 | transport::page_server::kAddFlags, object, address,
                pages);
  }

  static std::string ContentOf(uint64_t address, unsigned mark) {
    const uint64_t word = address ^ (uint64_t{mark} << 56 | mark);
    std::string page;
    for (int i = 0; i < 512; ++i) page.append(reinterpret_cast<const char*>(&word), sizeof word);
    return page;
  }

  // An answer as CRIU takes it: whatever one recv(2) brings must be all of it. -1: there is none.
  int OpenAnswer() { return AnswerOf<char>(); }
  int ParentAnswer() { return AnswerOf<int32_t>(); }
  int CloseAnswer() { return AnswerOf<int32_t>(); }

  int Open(uint64_t object) {
    return Send(transport::page_server::kOpen2, object) ? OpenAnswer() : -1;
  }
  int AskParent(uint64_t object) {
    return Send(transport::page_server::kParent, object) ? ParentAnswer() : -1;
  }
  int Close() { return Send(transport::page_server::kClose, 0) ? CloseAnswer() : -1; }
  void Leave() { socket_ = base::UniqueFd(); }

 private:
  template <typename T>
  int AnswerOf() {
    T answer;
    return ::recv(socket_.get(), &answer, sizeof answer, 0) == sizeof answer ? answer : -1;
  }

  base::UniqueFd socket_;
  transport::page_server::HeaderSize size_;
};

}  // namespace predump::pageserver

#endif  // PREDUMP_TESTS_PAGESERVER_CRIU_PEER_H_
