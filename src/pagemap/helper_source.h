// Takes pages without copying them, on any kernel whose vmsplice(2) shares pages: the helper task,
// which shares the target's memory, queues them into a pipe (DESIGN 6).
//
// The helper may be killed by somebody who saw it in ps(1): that is no end of the target, whose
// pages are copied from then on (readv_source.h).
// Thread rule: the thread that made the helper (ptrace's rule).
#ifndef PREDUMP_PAGEMAP_HELPER_SOURCE_H_
#define PREDUMP_PAGEMAP_HELPER_SOURCE_H_

#include <memory>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "src/base/units.h"
#include "src/kernel/helper_task.h"
#include "src/kernel/process.h"
#include "src/pagemap/extent.h"
#include "src/pagemap/readv_source.h"
#include "src/pagemap/spliced_source.h"

namespace predump::pagemap {

class HelperSource final : public SplicedSource {
 public:
  // `process` outlives the source; `helper` was made in it. Errors: TargetExited; else from errno.
  static absl::StatusOr<std::unique_ptr<HelperSource>> Create(const kernel::ProcessHandle& process,
                                                              kernel::HelperTask helper);

  // That of the source in use.
  absl::string_view name() const override { return copying_ ? copying_->name() : "helper"; }
  base::PageCount max_pages() const override {
    return copying_ ? copying_->max_pages() : SplicedSource::max_pages();
  }
  absl::StatusOr<FetchResult> Fetch(std::span<const Extent> wanted) override;
  base::ByteCount held() const override {
    return copying_ ? copying_->held() : SplicedSource::held();
  }
  absl::Status Push(int out_fd, base::ByteCount bytes) override;
  absl::Status Finish() override { return helper_.Finish(); }

 private:
  HelperSource(const kernel::ProcessHandle& process, SecondWay second_way,
               kernel::HelperTask helper)
      : SplicedSource(process, std::move(second_way)), helper_(std::move(helper)) {}

  absl::StatusOr<base::ByteCount> Queue(std::span<const Extent> pages) override {
    return helper_.Vmsplice(pages);
  }
  int pipe_read_end() const override { return helper_.pipe(); }
  base::ByteCount pipe_capacity() const override { return helper_.pipe_capacity(); }

  // The helper has ended.
  absl::Status GoOnByCopying();

  kernel::HelperTask helper_;
  std::unique_ptr<ReadvSource> copying_;  // instead of the helper
};

}  // namespace predump::pagemap

#endif  // PREDUMP_PAGEMAP_HELPER_SOURCE_H_
