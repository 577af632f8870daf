// CRIU's image files as containers: magic numbers, then entries of protobuf, some with raw bytes
// behind them. Facts: format 2 (inventory img_version 2), CRIU 3.17.1 and 4.2.
//
//   inventory.img           u32 type magic, entries
//   *.img                   u32 kCommonMagic, u32 type magic, entries
//   stats-*, irmap-cache    u32 kServiceMagic, u32 type magic, entries
//   entry                   u32 length, protobuf of that length [, raw bytes its message counts]
//
// All integers are little-endian. Thread rule: an object belongs to one thread at a time.
#ifndef PREDUMP_IMAGES_IMAGE_FILE_H_
#define PREDUMP_IMAGES_IMAGE_FILE_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/message_lite.h"
#include "src/base/unique_fd.h"

namespace predump::images {

inline constexpr uint32_t kCommonMagic = 0x54564319;
inline constexpr uint32_t kServiceMagic = 0x55105940;

// Type magics. Published by CRIU; never change.
enum class ImageMagic : uint32_t {
  kInventory = 0x58313116,
  kPstree = 0x50273030,
  kCore = 0x55053847,
  kIds = 0x54432030,
  kMm = 0x57492820,
  kPagemap = 0x56084025,
  kFdinfo = 0x56213732,
  kFiles = 0x56303138,
  kFs = 0x51403912,
  kRemapFilePath = 0x59133954,
  kGhostFile = 0x52583605,
  kPipesData = 0x56453709,
  kFifoData = 0x59333054,
  kSkQueues = 0x56264026,
  kTcpStream = 0x51465506,
  kTtyInfo = 0x59453036,
  kTtyData = 0x59413026,
  kMemfdInode = 0x48453499,
  kSeccomp = 0x64413049,
  kTimens = 0x43114433,
  kCgroup = 0x59383330,
  kFileLocks = 0x54323616,
  kCpuinfo = 0x61404013,
  kStats = 0x57093306,
  kPredumpExtra = 0x50445831,  // ours
};

// The largest protobuf an entry may hold: far more than any process needs, and what a bad length
// can make us allocate.
inline constexpr uint32_t kMaxEntryBytes = 64u << 20;

// Writes one image, whole entries at a time. Nothing is synced: the directory's writer does that.
class ImageWriter {
 public:
  // Makes `name` in `directory_fd`, mode 0644; what was there is gone.
  static absl::StatusOr<ImageWriter> Create(int directory_fd, const std::string& name,
                                            ImageMagic magic);

  absl::Status Add(const google::protobuf::MessageLite& message);
  // Bytes behind the entry added last.
  absl::Status AddRaw(absl::string_view bytes);
  // Must be called: what was gathered is written, and errors show.
  absl::Status Finish();

 private:
  ImageWriter(base::UniqueFd fd, std::string name) : fd_(std::move(fd)), name_(std::move(name)) {}
  absl::Status Flush();

  base::UniqueFd fd_;
  std::string name_;
  std::string gathered_;
};

// Reads one image. All errors name the file; DataLoss for what is no image, is another kind of
// image, or ends within an entry.
class ImageReader {
 public:
  // NotFound where there is no such file.
  static absl::StatusOr<ImageReader> Open(int directory_fd, const std::string& name,
                                          ImageMagic magic);

  // Whether another entry was there; `message` then holds it.
  absl::StatusOr<bool> Next(google::protobuf::MessageLite& message);
  // Exactly `size` bytes from behind the entry read last.
  absl::StatusOr<std::string> Raw(size_t size);
  // The same, unread.
  absl::Status SkipRaw(size_t size);
  // The only entry of an image that has exactly one.
  absl::Status Single(google::protobuf::MessageLite& message);

  const std::string& name() const { return name_; }
  absl::Status Error(absl::string_view what) const;

 private:
  ImageReader(base::UniqueFd fd, std::string name, uint64_t size)
      : fd_(std::move(fd)), name_(std::move(name)), left_(size) {}
  // Exactly `size` bytes; the caller has compared with left_.
  absl::StatusOr<std::string> Take(size_t size);

  base::UniqueFd fd_;
  std::string name_;
  uint64_t left_ = 0;       // bytes not yet given out
  std::string gathered_;    // read ahead: entries of pagemaps are small and many
  size_t gathered_at_ = 0;  // what of it was given out
};

}  // namespace predump::images

#endif  // PREDUMP_IMAGES_IMAGE_FILE_H_
