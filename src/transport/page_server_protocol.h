// CRIU's page-server protocol: one struct for every message, in two sizes.
//
//   24 bytes (CRIU up to 4.1.1)  u32 command, u32 pages, u64 address, u64 object
//   32 bytes (CRIU from 4.2)     u32 command, u32 zero, u64 pages, u64 address, u64 object
//
// Little-endian. There is no greeting: the first message of a client is kOpen2 or kParent with
// pages and address zero, so that bytes 16 to 23 tell the sizes apart: the object, or zero.
// Thread rule: pure.
#ifndef PREDUMP_TRANSPORT_PAGE_SERVER_PROTOCOL_H_
#define PREDUMP_TRANSPORT_PAGE_SERVER_PROTOCOL_H_

#include <array>
#include <cstddef>
#include <cstdint>

namespace predump::transport::page_server {

enum class HeaderSize : size_t { kOld = 24, kNew = 32 };

// Low 16 bits of `command`; the high ones are page flags (images::PageFlag), with kAddFlags only.
enum Command : uint32_t {
  kAdd = 1,         // pages follow
  kHole = 2,        // in the parent
  kOpen = 3,        // no answer
  kOpen2 = 4,       // answered by one byte: whether there is a parent
  kParent = 5,      // answered by an int32: whether the parent has this object
  kAddFlags = 6,    // pages follow where the flags have kPagePresent
  kGet = 7,         // lazy pages; not served here
  kClose = 0x1023,  // answered by an int32, 0: all is stored
  kForceClose = 0x1024,
};

struct Message {
  uint32_t command = 0;
  uint64_t pages = 0;
  uint64_t address = 0;
  uint64_t object = 0;  // id << 8 | type

  uint32_t code() const { return command & 0xffff; }
  uint32_t flags() const { return command >> 16; }
};

// `object` of a task's memory and of a shared memory object.
constexpr uint64_t TaskObject(uint32_t pid) { return uint64_t{pid} << 8 | 1; }
constexpr uint64_t SharedMemoryObject(uint64_t id) { return id << 8 | 2; }

constexpr size_t kMostHeaderBytes = 32;

// Pads with zeros beyond `size`. `pages` must fit into the old form's 32 bits.
std::array<unsigned char, kMostHeaderBytes> Encode(const Message& message, HeaderSize size);
// `bytes` holds as many as `size` says.
Message Decode(const unsigned char* bytes, HeaderSize size);
// Whether a connection that begins so is a CRIU client's.
bool IsFirstMessage(const unsigned char* first_8_bytes);
// From the first 24 bytes of a connection.
HeaderSize DetectSize(const unsigned char* first_24_bytes);

}  // namespace predump::transport::page_server

#endif  // PREDUMP_TRANSPORT_PAGE_SERVER_PROTOCOL_H_
