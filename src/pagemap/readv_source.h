// Takes pages by process_vm_readv(2): one copy on the source, on any kernel, nothing in the target.
//
// The buffer is written out by calls that copy. It must not be spliced or sent zero-copy: those
// return when pages are queued, not sent, and the next Fetch would change what the peer gets
// (DESIGN 6). Thread rule: one thread at a time.
#ifndef PREDUMP_PAGEMAP_READV_SOURCE_H_
#define PREDUMP_PAGEMAP_READV_SOURCE_H_

#include <memory>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "src/base/mapped_region.h"
#include "src/base/units.h"
#include "src/kernel/process.h"
#include "src/pagemap/copied_pages.h"
#include "src/pagemap/extent.h"
#include "src/pagemap/page_source.h"

namespace predump::pagemap {

struct ReadvOptions {
  static constexpr base::ByteCount kSmallestBuffer{64 << 10};
  static constexpr base::ByteCount kLargestBuffer{4 << 20};
  // The fastest of 64 KiB to 4 MiB to a loopback receiver: smaller ones pay for calls and wake-ups,
  // larger ones leave the cache between the read and the write.
  base::ByteCount buffer{1 << 20};
};

class ReadvSource final : public PageSource {
 public:
  // `process` outlives the source. Errors: TargetExited; InvalidArgument a buffer size out of
  // bounds or not a multiple of the page size.
  static absl::StatusOr<std::unique_ptr<ReadvSource>> Create(const kernel::ProcessHandle& process,
                                                             const ReadvOptions& options = {});

  absl::string_view name() const override { return "readv"; }
  base::PageCount max_pages() const override {
    return base::ToPages(base::ByteCount(buffer_.size()));
  }
  absl::StatusOr<FetchResult> Fetch(std::span<const Extent> wanted) override;
  base::ByteCount held() const override { return filled_ - pushed_; }
  absl::Status Push(int out_fd, base::ByteCount bytes) override;
  absl::Status Finish() override { return absl::OkStatus(); }

 private:
  ReadvSource(const kernel::ProcessHandle& process, UnreadablePages unreadable,
              base::MappedRegion buffer)
      : process_(process), unreadable_(std::move(unreadable)), buffer_(std::move(buffer)) {}

  const kernel::ProcessHandle& process_;
  UnreadablePages unreadable_;
  base::MappedRegion buffer_;
  base::ByteCount filled_;  // by the last Fetch
  base::ByteCount pushed_;  // of these
};

}  // namespace predump::pagemap

#endif  // PREDUMP_PAGEMAP_READV_SOURCE_H_
