// What relays say to each other, byte by byte.
#ifndef PREDUMP_TESTS_TRANSPORT_RELAY_BYTES_H_
#define PREDUMP_TESTS_TRANSPORT_RELAY_BYTES_H_

#include <cstdint>
#include <string>

#include "src/transport/relay_frame.h"

namespace predump::transport {

inline std::string Frame(uint32_t stream, RelayKind kind, uint32_t length,
                         const std::string& body = "") {
  const auto header = EncodeRelayHeader({stream, kind, length});
  return std::string(header.data(), header.size()) + body;
}

inline std::string Hello(uint32_t window = 1u << 20) {
  std::string bytes;
  AppendRelayHello(window, bytes);
  return bytes;
}

}  // namespace predump::transport

#endif  // PREDUMP_TESTS_TRANSPORT_RELAY_BYTES_H_
