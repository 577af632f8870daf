// Two connected stream sockets, and raw access to one of them: the misbehaving peer of a test.
#ifndef PREDUMP_TESTS_TRANSPORT_STREAM_PAIR_H_
#define PREDUMP_TESTS_TRANSPORT_STREAM_PAIR_H_

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"
#include "src/base/unique_fd.h"

namespace predump::transport {

// Blocking ends.
inline std::pair<base::UniqueFd, base::UniqueFd> MakeStreamPair() {
  int fds[2] = {-1, -1};
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
  return {base::UniqueFd(fds[0]), base::UniqueFd(fds[1])};
}

inline void WriteRaw(int fd, absl::string_view bytes) {
  ASSERT_EQ(::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(bytes.size()));
}

// Exactly `size` bytes, or what came before the end of the stream.
inline std::string ReadRaw(int fd, size_t size) {
  std::string bytes(size, '\0');
  const ssize_t n = ::recv(fd, bytes.data(), size, MSG_WAITALL);
  bytes.resize(n > 0 ? static_cast<size_t>(n) : 0);
  return bytes;
}

template <typename T>
std::string BytesOf(const T& value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof value);
}

// A control frame as it lies on the wire, whatever it says.
inline std::string RawFrame(uint16_t type, uint16_t flags, uint32_t length,
                            absl::string_view body) {
  return BytesOf(type) + BytesOf(flags) + BytesOf(length) + std::string(body);
}

}  // namespace predump::transport

#endif  // PREDUMP_TESTS_TRANSPORT_STREAM_PAIR_H_
