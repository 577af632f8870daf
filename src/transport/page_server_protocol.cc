#include "src/transport/page_server_protocol.h"

#include <string.h>

namespace predump::transport::page_server {
namespace {

template <typename T>
void Put(T value, size_t at, std::array<unsigned char, kMostHeaderBytes>& to) {
  ::memcpy(to.data() + at, &value, sizeof value);
}

template <typename T>
T Get(const unsigned char* bytes, size_t at) {
  T value;
  ::memcpy(&value, bytes + at, sizeof value);
  return value;
}

}  // namespace

std::array<unsigned char, kMostHeaderBytes> Encode(const Message& message, HeaderSize size) {
  std::array<unsigned char, kMostHeaderBytes> bytes = {};
  Put(message.command, 0, bytes);
  if (size == HeaderSize::kOld) {
    Put(static_cast<uint32_t>(message.pages), 4, bytes);
    Put(message.address, 8, bytes);
    Put(message.object, 16, bytes);
  } else {
    Put(message.pages, 8, bytes);
    Put(message.address, 16, bytes);
    Put(message.object, 24, bytes);
  }
  return bytes;
}

Message Decode(const unsigned char* bytes, HeaderSize size) {
  Message message;
  message.command = Get<uint32_t>(bytes, 0);
  if (size == HeaderSize::kOld) {
    message.pages = Get<uint32_t>(bytes, 4);
    message.address = Get<uint64_t>(bytes, 8);
    message.object = Get<uint64_t>(bytes, 16);
  } else {
    message.pages = Get<uint64_t>(bytes, 8);
    message.address = Get<uint64_t>(bytes, 16);
    message.object = Get<uint64_t>(bytes, 24);
  }
  return message;
}

bool IsFirstMessage(const unsigned char* first_8_bytes) {
  const bool counts_pages = Get<uint32_t>(first_8_bytes, 4) != 0;
  switch (Get<uint32_t>(first_8_bytes, 0)) {
    case kOpen:
    case kOpen2:
    case kParent:
    case kClose:  // of a client that failed before it had anything to send
    case kForceClose:
      return !counts_pages;
    case kAdd:  // of old clients, which did not open
    case kHole:
      return counts_pages;
    case kGet:
      return true;
    default:
      return false;
  }
}

HeaderSize DetectSize(const unsigned char* first_24_bytes) {
  // Clients with the larger header always open first.
  if (Get<uint32_t>(first_24_bytes, 4) != 0) return HeaderSize::kOld;
  return Get<uint64_t>(first_24_bytes, 16) != 0 ? HeaderSize::kOld : HeaderSize::kNew;
}

}  // namespace predump::transport::page_server
