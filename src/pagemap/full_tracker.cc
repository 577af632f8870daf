#include "src/pagemap/full_tracker.h"

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"

namespace predump::pagemap {

absl::StatusOr<std::unique_ptr<FullTracker>> FullTracker::Create(
    const kernel::ProcessHandle& process, PageScanner::Method method) {
  PREDUMP_ASSIGN_OR_RETURN(PageScanner scanner, PageScanner::Open(process, method));
  return std::unique_ptr<FullTracker>(new FullTracker(process, std::move(scanner)));
}

absl::StatusOr<DirtySet> FullTracker::ScanAndReset(const VmaList& vmas) {
  return Scan(vmas, WalkPace::kInSteps);
}

absl::StatusOr<DirtySet> FullTracker::FinalScan(const VmaList& vmas) {
  return Scan(vmas, WalkPace::kWhole);
}

absl::StatusOr<DirtySet> FullTracker::Scan(const VmaList& vmas, WalkPace pace) {
  // The memory outlives the process where somebody shares it (the helper does).
  PREDUMP_ASSIGN_OR_RETURN(const bool exited, process_.HasExited());
  if (exited) return base::TargetExited(absl::StrCat("process ", process_.pid(), " has exited"));
  DirtySet dirty;
  for (const Vma& vma : vmas.vmas()) {
    if (!vma.is_private_memory()) continue;
    ExtentSet range;
    range.Add(vma.range);
    const Backing backing =
        vma.kind == VmaKind::kFilePrivate ? Backing::kFile : Backing::kAnonymous;
    PREDUMP_ASSIGN_OR_RETURN(const PageContents contents, scanner_.Classify(range, backing, pace));
    dirty.pages.AddAll(contents.data);
    dirty.drop.AddAll(held_.Intersection(contents.empty));
  }
  // What lies in no mapping any more is unmapped at the target, not dropped.
  held_ = dirty.pages;
  return dirty;
}

}  // namespace predump::pagemap
