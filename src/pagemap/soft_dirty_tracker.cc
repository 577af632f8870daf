#include "src/pagemap/soft_dirty_tracker.h"

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/pagemap/layout.h"

namespace predump::pagemap {
namespace {

constexpr absl::string_view kMergeableReason = "same-page merging (KSM) may rewrite it";
constexpr absl::string_view kMovedReason =
    "its page tables may have been moved as a whole (mremap), which leaves no marks";
constexpr absl::string_view kForeignReason =
    "somebody else reset the soft-dirty marks (/proc/PID/clear_refs)";

Backing BackingOf(const Vma& vma) {
  return vma.kind == VmaKind::kFilePrivate ? Backing::kFile : Backing::kAnonymous;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SoftDirtyTracker>> SoftDirtyTracker::Create(
    const kernel::ProcessHandle& process, PageScanner::Method method) {
  PREDUMP_ASSIGN_OR_RETURN(PageScanner scanner, PageScanner::Open(process, method));
  PREDUMP_ASSIGN_OR_RETURN(kernel::ClearRefs marks, kernel::ClearRefs::Open(process));
  PREDUMP_ASSIGN_OR_RETURN(ResetWitness witness, ResetWitness::Create(process));
  return std::unique_ptr<SoftDirtyTracker>(
      new SoftDirtyTracker(process, std::move(scanner), std::move(marks), std::move(witness)));
}

absl::StatusOr<DirtySet> SoftDirtyTracker::ScanAndReset(const VmaList& vmas) {
  // Pages may have been reset and not reported when this fails: then all of it is in doubt.
  absl::StatusOr<DirtySet> dirty = TryScanAndReset(vmas);
  resend_everything_ = !dirty.ok();
  return dirty;
}

absl::StatusOr<DirtySet> SoftDirtyTracker::TryScanAndReset(const VmaList& vmas) {
  PREDUMP_ASSIGN_OR_RETURN(Memory memory, Look(vmas));
  PREDUMP_ASSIGN_OR_RETURN(DirtySet dirty, Compare(vmas, memory));
  PREDUMP_RETURN_IF_ERROR(marks_.ResetSoftDirty());
  was_reset_ = true;
  PREDUMP_RETURN_IF_ERROR(moved_.Remember(memory.data, memory.unmarked, scanner_));
  PREDUMP_RETURN_IF_ERROR(witness_.Plant(vmas, memory.data, memory.unmarked, scanner_));
  Commit(vmas, std::move(memory));
  return dirty;
}

absl::StatusOr<DirtySet> SoftDirtyTracker::FinalScan(const VmaList& vmas) {
  PREDUMP_ASSIGN_OR_RETURN(Memory memory, Look(vmas));
  PREDUMP_ASSIGN_OR_RETURN(DirtySet dirty, Compare(vmas, memory));
  Commit(vmas, std::move(memory));
  return dirty;
}

void SoftDirtyTracker::Commit(const VmaList& vmas, Memory memory) {
  layout_ = vmas;
  held_ = std::move(memory.data);
}

absl::StatusOr<SoftDirtyTracker::Memory> SoftDirtyTracker::Look(const VmaList& vmas) {
  // The memory outlives the process where somebody shares it (the helper does).
  PREDUMP_ASSIGN_OR_RETURN(const bool exited, process_.HasExited());
  if (exited) return base::TargetExited(absl::StrCat("process ", process_.pid(), " has exited"));
  full_resends_.clear();
  Memory memory;
  for (const Vma& vma : vmas.vmas()) {
    if (!vma.is_private_memory()) continue;
    PREDUMP_ASSIGN_OR_RETURN(PageScanner::Marked marked,
                             scanner_.ClassifyMarked(vma.range, BackingOf(vma)));
    memory.data.AddAll(marked.contents.data);
    memory.empty.AddAll(marked.contents.empty);
    if (IsMergeable(vma)) memory.mergeable.AddAll(marked.contents.data);
    marked.contents.data.Subtract(marked.written);
    memory.unmarked.AddAll(marked.contents.data);
  }
  return memory;
}

absl::StatusOr<DirtySet> SoftDirtyTracker::Compare(const VmaList& vmas, const Memory& memory) {
  // What the landing maps anew starts empty there, whatever the marks in our page tables say.
  std::vector<Extent> changed;
  for (const LayoutOp& op : DiffLayout(layout_, vmas)) changed.push_back(op.range);
  ExtentSet held = held_;
  held.Subtract(ExtentSet::FromUnsorted(std::move(changed)));

  ExtentSet as_sent = memory.unmarked.Intersection(held);
  PREDUMP_ASSIGN_OR_RETURN(const ExtentSet doubtful, moved_.Doubtful(memory.unmarked, scanner_));
  if (const ExtentSet resent = doubtful.Intersection(as_sent); !resent.empty()) {
    const Extent span = base::AddressRange::FromOrdered(resent.extents().front().start().value(),
                                                        resent.extents().back().end().value());
    full_resends_.push_back({span, std::string(kMovedReason)});
  }
  as_sent.Subtract(doubtful);
  as_sent.Subtract(memory.mergeable);
  if (was_reset_) {
    // Asked last: a reset that came before this hid something from what was looked at above.
    PREDUMP_ASSIGN_OR_RETURN(const bool intact, witness_.Intact(scanner_));
    if (!intact) full_resends_.push_back({{}, std::string(kForeignReason)});
    if (!intact) as_sent.clear();
  }
  if (resend_everything_) as_sent.clear();

  DirtySet dirty;
  dirty.drop = held.Intersection(memory.empty);
  dirty.pages = memory.data;
  dirty.pages.Subtract(as_sent);
  return dirty;
}

bool SoftDirtyTracker::IsMergeable(const Vma& vma) {
  if (vma.mergeable()) mergeable_.Add(vma.range);
  if (!mergeable_.Overlaps(vma.range)) return false;
  full_resends_.push_back({vma.range, std::string(kMergeableReason)});
  return true;
}

}  // namespace predump::pagemap
