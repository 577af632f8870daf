// The vDSO among the pages that are sent, for a target that stores images.
//
// A process is moved without its vDSO: the target has the same one. An image of it must hold the
// vDSO's pages all the same, since restoring compares them, and CRIU looks for them in the first
// images of every chain. No tracker reports them: the kernel's own pages are not written. They are
// copied before anything of ours lies in their padding, sent in the first round, and again only
// where they have moved.
//
//   tracker.ScanAndReset -> TrackerWithVdso adds the ranges -> Fetch -> SourceWithVdso has the
//   bytes
//
// Thread rule: one thread at a time.
#ifndef PREDUMP_PAGEMAP_VDSO_PAGES_H_
#define PREDUMP_PAGEMAP_VDSO_PAGES_H_

#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "src/base/units.h"
#include "src/kernel/process.h"
#include "src/pagemap/dirty_tracker.h"
#include "src/pagemap/extent.h"
#include "src/pagemap/page_source.h"
#include "src/pagemap/vma.h"

namespace predump::pagemap {

// A copy of the vDSO, and where the process has it. Nothing where it has none.
class VdsoPages {
 public:
  // Before the process is set up. Errors: TargetExited; else from /proc/PID/maps and mem.
  static absl::StatusOr<VdsoPages> Copy(const kernel::ProcessHandle& process);

  const ExtentSet& range() const { return range_; }
  // Follows the vDSO to where it is in `vmas`; copies it anew where it is not just moved.
  absl::Status Follow(const VmaList& vmas);
  // The bytes of `page`, one of range(), and as many behind it in the same extent.
  std::span<const std::byte> BytesFrom(base::RemoteAddress page) const;

 private:
  explicit VdsoPages(const kernel::ProcessHandle& process) : process_(&process) {}
  absl::Status Read(ExtentSet range);

  const kernel::ProcessHandle* process_;
  ExtentSet range_;
  std::vector<std::byte> bytes_;  // of the extents of range_, one after the other
};

class TrackerWithVdso final : public DirtyTracker {
 public:
  // `vdso` outlives the tracker.
  TrackerWithVdso(std::unique_ptr<DirtyTracker> inner, VdsoPages& vdso)
      : inner_(std::move(inner)), vdso_(vdso) {}

  absl::string_view name() const override { return inner_->name(); }
  bool needs_freeze() const override { return inner_->needs_freeze(); }
  absl::StatusOr<DirtySet> ScanAndReset(const VmaList& vmas) override;
  absl::StatusOr<DirtySet> FinalScan(const VmaList& vmas) override;
  base::PageCount owed() const override { return inner_->owed(); }
  const std::vector<FullResend>& full_resends() const override { return inner_->full_resends(); }
  absl::Status Disarm() override { return inner_->Disarm(); }

 private:
  absl::StatusOr<DirtySet> Add(DirtySet dirty, const VmaList& vmas);

  std::unique_ptr<DirtyTracker> inner_;
  VdsoPages& vdso_;
  ExtentSet reported_;
};

class SourceWithVdso final : public PageSource {
 public:
  // `vdso` outlives the source.
  SourceWithVdso(std::unique_ptr<PageSource> inner, const VdsoPages& vdso)
      : inner_(std::move(inner)), vdso_(vdso) {}

  absl::string_view name() const override { return inner_->name(); }
  base::PageCount max_pages() const override { return inner_->max_pages(); }
  // Ends where the vDSO begins or ends, so that the bytes of one Fetch come from one place.
  absl::StatusOr<FetchResult> Fetch(std::span<const Extent> wanted) override;
  base::ByteCount held() const override { return inner_->held() + base::ByteCount(copy_.size()); }
  absl::Status Push(int out_fd, base::ByteCount bytes) override;
  absl::Status Finish() override { return inner_->Finish(); }

 private:
  std::unique_ptr<PageSource> inner_;
  const VdsoPages& vdso_;
  std::span<const std::byte> copy_;  // fetched and not pushed; empty while inner_ holds something
};

}  // namespace predump::pagemap

#endif  // PREDUMP_PAGEMAP_VDSO_PAGES_H_
