// Bits and numbers of CRIU's images that are not in its protobuf schema.
#ifndef PREDUMP_IMAGES_IMAGE_CONSTANTS_H_
#define PREDUMP_IMAGES_IMAGE_CONSTANTS_H_

#include <cstddef>
#include <cstdint>

namespace predump::images {

// vma_entry.status
enum VmaStatus : uint32_t {
  kVmaRegular = 0x1,
  kVmaVsyscall = 0x4,
  kVmaVdso = 0x8,
  kVmaHeap = 0x20,
  kVmaFilePrivate = 0x40,
  kVmaFileShared = 0x80,
  kVmaAnonymousShared = 0x100,
  kVmaAnonymousPrivate = 0x200,
  kVmaVvar = 0x1000,
};

// task_core_entry.task_state
inline constexpr uint32_t kTaskAlive = 1;

// inet_sk_entry.state and unix_sk_entry.state (TCP_ESTABLISHED and so on).
inline constexpr uint32_t kSocketEstablished = 1;
inline constexpr uint32_t kSocketClosed = 7;
inline constexpr uint32_t kSocketListening = 10;

inline constexpr int kImageVersion = 2;
// inventory_entry.img_version of a directory with rounds only.
inline constexpr int kRoundsImageVersion = 0;
// CRIU stores at most this many words of the auxiliary vector.
inline constexpr int kMaxSavedAuxvWords = 44;
// Signals 1..64 without SIGKILL and SIGSTOP.
inline constexpr int kSignalActions = 62;
inline constexpr int kRlimits = 16;
inline constexpr size_t kSiginfoBytes = 128;
inline constexpr size_t kFpuStackWords = 32;
inline constexpr size_t kXmmWords = 64;
// First address a process cannot have (x86-64, 4-level page tables).
inline constexpr uint64_t kUserSpaceEnd = 0x7ffffffff000;
inline constexpr uint64_t kPageBytes = 4096;

// Bits of an epoll entry that are no events (EP_PRIVATE_BITS of fs/eventpoll.c). One that has
// nothing else has fired (EPOLLONESHOT), and says nothing until it is asked for again: not even the
// errors and hang-ups that every other entry is given unasked.
inline constexpr uint32_t kEpollModes = 0xf0000000;
inline constexpr bool HasFired(uint32_t epoll_events) { return (epoll_events & ~kEpollModes) == 0; }

}  // namespace predump::images

#endif  // PREDUMP_IMAGES_IMAGE_CONSTANTS_H_
