// Takes pages without copying them: the helper task, which shares the target's memory, queues them
// into a pipe, and splice(2) moves them on (DESIGN 6).
//
// What the pipe holds are the target's own pages, not copies of them: a write by the target before
// they are sent is sent. That is the rule for dirty pages anyway (they go again), and nothing
// writes while the target is frozen. The helper may be killed by somebody who saw it in ps(1): that
// is no end of the target, whose pages are copied from then on (readv_source.h). Thread rule: the
// thread that made the helper (ptrace's rule).
#ifndef PREDUMP_PAGEMAP_HELPER_SOURCE_H_
#define PREDUMP_PAGEMAP_HELPER_SOURCE_H_

#include <memory>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "src/base/mapped_region.h"
#include "src/base/units.h"
#include "src/kernel/helper_task.h"
#include "src/kernel/process.h"
#include "src/pagemap/copied_pages.h"
#include "src/pagemap/extent.h"
#include "src/pagemap/page_source.h"
#include "src/pagemap/readv_source.h"

namespace predump::pagemap {

class HelperSource final : public PageSource {
 public:
  // `process` outlives the source; `helper` was made in it. Errors: TargetExited; else from errno.
  static absl::StatusOr<std::unique_ptr<HelperSource>> Create(const kernel::ProcessHandle& process,
                                                              kernel::HelperTask helper);

  // That of the source in use.
  absl::string_view name() const override { return copying_ ? copying_->name() : "helper"; }
  base::PageCount max_pages() const override {
    return copying_ ? copying_->max_pages() : base::ToPages(helper_.pipe_capacity());
  }
  // Ends before a page that the helper cannot queue; the next Fetch starts with that one and copies
  // it, so that the bytes of one Fetch all come from one place, in order.
  absl::StatusOr<FetchResult> Fetch(std::span<const Extent> wanted) override;
  absl::Status PushTo(int out_fd) override;
  absl::Status Finish() override { return helper_.Finish(); }

 private:
  HelperSource(const kernel::ProcessHandle& process, kernel::HelperTask helper,
               UnreadablePages unreadable, base::MappedRegion buffer)
      : process_(process),
        helper_(std::move(helper)),
        unreadable_(std::move(unreadable)),
        buffer_(std::move(buffer)) {}

  // The helper has ended.
  absl::Status GoOnByCopying();

  const kernel::ProcessHandle& process_;
  kernel::HelperTask helper_;
  std::unique_ptr<ReadvSource> copying_;  // instead of the helper
  UnreadablePages unreadable_;
  base::MappedRegion buffer_;
  // Not yet pushed; at most one of them is not 0.
  base::ByteCount in_pipe_;
  base::ByteCount in_buffer_;
};

}  // namespace predump::pagemap

#endif  // PREDUMP_PAGEMAP_HELPER_SOURCE_H_
