// A core file to a pipe, a socket or a device: one byte after the other, holes as zeros.
//
// Pages are copied before they are passed on. A pipe that was spliced to holds the pages of the
// process themselves, and the reader takes them when it likes: with --consistent the process would
// have written to them again by then. Thread rule: one thread at a time.
#ifndef PREDUMP_CORE_STREAM_OUTPUT_H_
#define PREDUMP_CORE_STREAM_OUTPUT_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <utility>

#include "src/base/mapped_region.h"
#include "src/base/unique_fd.h"
#include "src/core/output.h"

namespace predump::core {

class StreamOutput final : public Output {
 public:
  // `name` is what messages call it.
  static absl::StatusOr<std::unique_ptr<Output>> Create(base::UniqueFd fd, std::string name,
                                                        int cancel_fd);

  absl::Status Write(uint64_t offset, std::span<const std::byte> bytes) override;
  absl::Status Take(pagemap::PageSource& source, std::span<const Placement> placements) override;
  base::ByteCount max_bytes() const override { return pipe_.capacity(); }
  absl::Status Finish(uint64_t size) override;

 private:
  enum class Kind { kPipe, kSocket, kOther };

  StreamOutput(base::UniqueFd fd, std::string name, int cancel_fd, Kind kind, kernel::PipePair pipe,
               base::MappedRegion buffer)
      : fd_(std::move(fd)),
        name_(std::move(name)),
        cancel_fd_(cancel_fd),
        kind_(kind),
        pipe_(std::move(pipe)),
        buffer_(std::move(buffer)) {}

  absl::Status ZerosUpTo(uint64_t offset);
  // Without ever waiting but for the reader or for the word to end.
  absl::Status Send(std::span<const std::byte> bytes);
  // Bytes taken, or -1 and errno.
  ssize_t SendSome(std::span<const std::byte> bytes) const;

  base::UniqueFd fd_;
  std::string name_;
  int cancel_fd_;
  Kind kind_;
  kernel::PipePair pipe_;
  base::MappedRegion buffer_;
  uint64_t position_ = 0;
};

}  // namespace predump::core

#endif  // PREDUMP_CORE_STREAM_OUTPUT_H_
