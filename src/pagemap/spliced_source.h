// What the sources have in common that copy nothing: the target's own pages are queued into a pipe,
// and splice(2) moves them on (DESIGN 6).
//
// The pipe holds the pages, not copies of them: a write by the target before they are sent is sent.
// That is the rule for dirty pages anyway (they go again), and nothing writes while the target is
// frozen.
#ifndef PREDUMP_PAGEMAP_SPLICED_SOURCE_H_
#define PREDUMP_PAGEMAP_SPLICED_SOURCE_H_

#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/base/mapped_region.h"
#include "src/base/units.h"
#include "src/kernel/process.h"
#include "src/pagemap/copied_pages.h"
#include "src/pagemap/extent.h"
#include "src/pagemap/page_source.h"

namespace predump::pagemap {

class SplicedSource : public PageSource {
 public:
  base::PageCount max_pages() const override { return base::ToPages(pipe_capacity()); }
  // Ends before a page that cannot be queued; the next Fetch starts with that one and copies it, so
  // that the bytes of one Fetch all come from one place, in order.
  absl::StatusOr<FetchResult> Fetch(std::span<const Extent> wanted) override;
  base::ByteCount held() const override { return in_pipe_ + in_buffer_; }
  absl::Status Push(int out_fd, base::ByteCount bytes) override;

 protected:
  // For pages that cannot be queued.
  struct SecondWay {
    // Errors: TargetExited; else from errno.
    static absl::StatusOr<SecondWay> Open(const kernel::ProcessHandle& process);

    UnreadablePages unreadable;
    base::MappedRegion buffer;
  };

  // `process` outlives the source.
  SplicedSource(const kernel::ProcessHandle& process, SecondWay second_way)
      : process_(process), second_way_(std::move(second_way)) {}

  const kernel::ProcessHandle& process() const { return process_; }

 private:
  // Queues from the start of `pages` what there is room for; ends before a page that cannot be had.
  virtual absl::StatusOr<base::ByteCount> Queue(std::span<const Extent> pages) = 0;
  virtual int pipe_read_end() const = 0;
  virtual base::ByteCount pipe_capacity() const = 0;

  const kernel::ProcessHandle& process_;
  SecondWay second_way_;
  // Not yet pushed; at most one of them is not 0.
  base::ByteCount in_pipe_;
  base::ByteCount in_buffer_;
  base::ByteCount buffer_done_;  // pushed from the buffer's start
};

}  // namespace predump::pagemap

#endif  // PREDUMP_PAGEMAP_SPLICED_SOURCE_H_
