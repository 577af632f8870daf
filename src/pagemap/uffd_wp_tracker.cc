#include "src/pagemap/uffd_wp_tracker.h"

#include <errno.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/pagemap/layout.h"

namespace predump::pagemap {
namespace {

using base::AddressRange;
using base::ByteCount;

constexpr absl::string_view kForeignReason = "the application's own userfaultfd has it";
constexpr absl::string_view kMergeableReason = "same-page merging (KSM) may rewrite it";

Backing BackingOf(const Vma& vma) {
  return vma.kind == VmaKind::kFilePrivate ? Backing::kFile : Backing::kAnonymous;
}

ExtentSet SetOf(AddressRange range) {
  ExtentSet set;
  set.Add(range);
  return set;
}

AddressRange FirstPage(AddressRange range) {
  const uint64_t start = range.start().value();
  return AddressRange::FromOrdered(start, start + base::PageSize());
}

ExtentSet PrivateMemory(const VmaList& vmas) {
  ExtentSet set;
  for (const Vma& vma : vmas.vmas()) {
    if (vma.is_private_memory()) set.Add(vma.range);
  }
  return set;
}

}  // namespace

UffdWpTracker::UffdWpTracker(const kernel::ProcessHandle& process, kernel::Userfaultfd uffd,
                             PageScanner scanner, MappedFiles files, const UffdWpOptions& options)
    : process_(process),
      uffd_(std::move(uffd)),
      scanner_(std::move(scanner)),
      files_(std::move(files)),
      options_(options) {}

UffdWpTracker::~UffdWpTracker() { Disarm().IgnoreError(); }

absl::StatusOr<std::unique_ptr<UffdWpTracker>> UffdWpTracker::Create(
    const kernel::ProcessHandle& process, kernel::Userfaultfd uffd, const UffdWpOptions& options) {
  PREDUMP_RETURN_IF_ERROR(uffd.EnableWriteProtectAsync());
  PREDUMP_ASSIGN_OR_RETURN(PageScanner scanner, PageScanner::Open(process));
  PREDUMP_ASSIGN_OR_RETURN(MappedFiles files, MappedFiles::Create(process));
  return std::unique_ptr<UffdWpTracker>(
      new UffdWpTracker(process, std::move(uffd), std::move(scanner), std::move(files), options));
}

UffdWpTracker::Statistics UffdWpTracker::statistics() const {
  return {.scanner = scanner_.statistics(),
          .most_bytes_in_one_unregister = most_bytes_in_one_unregister_};
}

absl::StatusOr<DirtySet> UffdWpTracker::ScanAndReset(const VmaList& vmas) {
  if (options_.reads != nullptr) PREDUMP_RETURN_IF_ERROR(options_.reads->BeginReset());
  // Pages may have been reset and not reported when this fails: then all of it is in doubt.
  absl::StatusOr<DirtySet> dirty = Scan(vmas, /*reset=*/true);
  resend_everything_ = !dirty.ok();
  if (options_.reads == nullptr) return dirty;
  absl::StatusOr<ExtentSet> reads = options_.reads->Snapshot();
  if (reads.ok()) {
    in_flight_ = *std::move(reads);
  } else {
    resend_everything_ = true;
    if (base::IsTargetExited(reads.status())) return reads.status();
    NoteFullResend({}, absl::StrCat("reads in flight are not known: ", reads.status().message()));
  }
  return dirty;
}

absl::StatusOr<DirtySet> UffdWpTracker::FinalScan(const VmaList& vmas) {
  return Scan(vmas, /*reset=*/false);
}

base::PageCount UffdWpTracker::owed() const {
  if (resend_everything_) return held_.pages();
  ExtentSet owed = untracked_;
  owed.AddAll(resend_);
  owed.AddAll(in_flight_);
  return held_.Intersection(owed).pages();
}

ExtentSet UffdWpTracker::ApplyLayout(const VmaList& vmas) {
  // What the landing maps anew starts empty there, whatever the marks in our page tables say.
  std::vector<Extent> fresh;
  std::vector<Extent> gone;
  for (const LayoutOp& op : DiffLayout(layout_, vmas)) {
    (op.kind == LayoutOp::Kind::kMap ? fresh : gone).push_back(op.range);
  }
  held_.Subtract(ExtentSet::FromUnsorted(std::move(gone)));
  ExtentSet forced = ExtentSet::FromUnsorted(std::move(fresh));
  held_.Subtract(forced);
  layout_ = vmas;

  forced.AddAll(resend_);
  forced.AddAll(in_flight_);
  if (resend_everything_) forced = PrivateMemory(vmas);
  return forced;
}

absl::StatusOr<DirtySet> UffdWpTracker::Scan(const VmaList& vmas, bool reset) {
  if (!uffd_.has_value()) return absl::FailedPreconditionError("uffd-wp tracking was taken off");
  // The memory outlives the process where somebody shares it (the helper does).
  PREDUMP_ASSIGN_OR_RETURN(const bool exited, process_.HasExited());
  if (exited) return base::TargetExited(absl::StrCat("process ", process_.pid(), " has exited"));

  full_resends_.clear();
  const ExtentSet forced = ApplyLayout(vmas);
  std::vector<AddressRange> armed_before;
  if (reset) {
    // Built anew below. A failure midway leaves too few, which only costs probes.
    armed_before = std::exchange(armed_, {});
    untracked_.clear();
    resend_.clear();
  }
  DirtySet dirty;
  for (const Vma& vma : vmas.vmas()) {
    if (!vma.is_private_memory()) continue;
    absl::StatusOr<PageContents> contents =
        reset ? ResetAndScan(vma, armed_before) : ScanFrozen(vma);
    PREDUMP_RETURN_IF_ERROR(contents);
    if (forced.Overlaps(vma.range)) {
      ExtentSet part = forced.Intersection(SetOf(vma.range));
      part.Subtract(contents->data);
      PREDUMP_ASSIGN_OR_RETURN(
          const PageContents more,
          scanner_.Classify(part, BackingOf(vma), reset ? WalkPace::kInSteps : WalkPace::kWhole));
      contents->data.AddAll(more.data);
      contents->empty.AddAll(more.empty);
    }
    if (reset && vma.kind == VmaKind::kFilePrivate && !contents->data.empty()) {
      files_.Prepare(vma);  // the freeze has no time to open files
    }
    dirty.pages.AddAll(contents->data);
    dirty.drop.AddAll(held_.Intersection(contents->empty));
  }
  held_.Subtract(dirty.drop);
  held_.AddAll(dirty.pages);
  return dirty;
}

absl::StatusOr<PageContents> UffdWpTracker::ResetAndScan(
    const Vma& vma, const std::vector<AddressRange>& armed_before) {
  PREDUMP_ASSIGN_OR_RETURN(Armed armed, EnsureArmed(vma, armed_before));
  std::optional<PageContents> contents;
  if (armed == Armed::kBefore) {
    PREDUMP_ASSIGN_OR_RETURN(contents, Incremental(vma));
    if (!contents.has_value()) {
      // Part of it was replaced since the layout was read. What was reset before the scan was
      // refused is lost, so all of it goes again.
      PREDUMP_ASSIGN_OR_RETURN(armed, Arm(vma));
    }
  }
  if (armed == Armed::kNot) {
    untracked_.Add(vma.range);
    return Whole(vma, WalkPace::kInSteps);
  }
  armed_.push_back(vma.range);
  if (contents.has_value()) return *std::move(contents);
  return WholeAndReset(vma);
}

absl::StatusOr<std::optional<PageContents>> UffdWpTracker::Incremental(const Vma& vma) {
  // First what holds data: this is protected again. Protecting holes as well would leave a marker
  // in each, and page tables to put them in.
  PREDUMP_ASSIGN_OR_RETURN(
      PageScanner::ContentsResult written,
      scanner_.ResetAndClassify(vma.range, BackingOf(vma), /*written_only=*/true));
  if (written.refused) return std::nullopt;
  // Then the holes, which requiring "present" hid: pages that were there and were discarded.
  PREDUMP_ASSIGN_OR_RETURN(
      const ExtentSet holes,
      scanner_.Holes(held_.Intersection(SetOf(vma.range)), WalkPace::kInSteps));
  written.contents.empty.AddAll(holes);
  return std::move(written.contents);
}

absl::StatusOr<PageContents> UffdWpTracker::WholeAndReset(const Vma& vma) {
  // No "written" required: after a refused scan, pages already reset have to be reported too.
  PREDUMP_ASSIGN_OR_RETURN(
      PageScanner::ContentsResult all,
      scanner_.ResetAndClassify(vma.range, BackingOf(vma), /*written_only=*/false));
  if (!all.refused) return std::move(all.contents);
  // The layout changes faster than it is read: take what is there now and come back.
  NoteFullResend(vma.range, "its layout changed during the scan");
  resend_.Add(vma.range);
  return Whole(vma, WalkPace::kInSteps);
}

absl::StatusOr<PageContents> UffdWpTracker::Whole(const Vma& vma, WalkPace pace) {
  return scanner_.Classify(SetOf(vma.range), BackingOf(vma), pace);
}

absl::StatusOr<PageContents> UffdWpTracker::ScanFrozen(const Vma& vma) {
  if (IsMergeable(vma) || untracked_.Overlaps(vma.range)) return Whole(vma, WalkPace::kWhole);
  PREDUMP_ASSIGN_OR_RETURN(std::optional<PageContents> contents, IncrementalFrozen(vma));
  // New, moved or merged since the last reset: areas of it without a page table would not be
  // reported as written at all, so nothing less than all of it will do.
  if (!contents.has_value()) return Whole(vma, WalkPace::kWhole);
  if (vma.kind == VmaKind::kFilePrivate) {
    PREDUMP_RETURN_IF_ERROR(FindDiscardedFilePages(vma, *contents));
  }
  return *std::move(contents);
}

absl::StatusOr<std::optional<PageContents>> UffdWpTracker::IncrementalFrozen(const Vma& vma) {
  PREDUMP_ASSIGN_OR_RETURN(const PageScanner::Result written,
                           scanner_.Written(vma.range, Protection::kCheck, WalkPace::kWhole));
  if (written.refused) return std::nullopt;
  return scanner_.Classify(written.pages, BackingOf(vma), WalkPace::kWhole);
}

absl::Status UffdWpTracker::FindDiscardedFilePages(const Vma& vma, PageContents& contents) {
  // MADV_DONTNEED on a protected page of a file mapping leaves the protection mark, so that nothing
  // counts as written although the page is the file's own again: compare with what was sent.
  ExtentSet sent = held_.Intersection(SetOf(vma.range));
  sent.Subtract(contents.data);
  sent.Subtract(contents.empty);
  if (sent.empty()) return absl::OkStatus();
  PREDUMP_ASSIGN_OR_RETURN(const PageContents now,
                           scanner_.Classify(sent, BackingOf(vma), WalkPace::kWhole));
  contents.empty.AddAll(now.empty);
  // That mark alone reads as "swapped out". Sending what the page reads as is right for both.
  PREDUMP_ASSIGN_OR_RETURN(const ExtentSet swapped, scanner_.Swapped(now.data));
  contents.data.AddAll(swapped);

  // A write to a discarded page takes two faults: one makes a private copy, still marked as
  // protected, the next lifts the mark. A thread frozen between the two leaves a page that looks
  // untouched but holds what the file holds, not what was sent.
  ExtentSet copies = now.data;
  copies.Subtract(swapped);
  PREDUMP_ASSIGN_OR_RETURN(const MappedFiles::Comparison comparison, files_.Compare(vma, copies));
  contents.empty.AddAll(comparison.equal);
  contents.data.AddAll(comparison.unknown);
  return absl::OkStatus();
}

bool UffdWpTracker::IsMergeable(const Vma& vma) {
  if (vma.mergeable()) mergeable_.Add(vma.range);
  if (!mergeable_.Overlaps(vma.range)) return false;
  NoteFullResend(vma.range, kMergeableReason);
  return true;
}

absl::StatusOr<UffdWpTracker::Armed> UffdWpTracker::EnsureArmed(
    const Vma& vma, const std::vector<AddressRange>& armed_before) {
  if (IsMergeable(vma)) return Armed::kNot;
  if (std::binary_search(armed_before.begin(), armed_before.end(), vma.range)) {
    return Armed::kBefore;
  }
  // New bounds: a mapping we know that grew, shrank, was split or joined, or one we do not know.
  PREDUMP_ASSIGN_OR_RETURN(const bool armed, scanner_.IsArmed(vma.range.start()));
  const AddressRange first_page = FirstPage(vma.range);
  if (!armed || first_page == vma.range) return Arm(vma);
  // Armed, but by whom? Registering again is idempotent for ours and refused for another's. One
  // page tells: all of it may have lost its registration since, and registered again it would pass
  // the scan's check with its old marks, which are never reported.
  const absl::Status registered = uffd_->Register(first_page);
  if (registered.ok()) return Armed::kBefore;
  if (base::ErrnoOf(registered) != EBUSY) return Arm(vma);
  NoteFullResend(vma.range, kForeignReason);
  return Armed::kNot;
}

absl::StatusOr<UffdWpTracker::Armed> UffdWpTracker::Arm(const Vma& vma) {
  // mremap that merges mappings takes the registration away and leaves protection marks behind, and
  // a page with such a mark is never reported again. Only unregistering removes the marks, and only
  // from what is registered: hence register, unregister, register.
  absl::Status status = uffd_->Register(vma.range);
  if (status.ok()) status = UnregisterInSteps(vma);
  if (status.ok()) status = uffd_->Register(vma.range);
  if (status.ok()) return Armed::kNow;
  // A process at its limit of mappings answers as one that is gone: ask it.
  PREDUMP_ASSIGN_OR_RETURN(const bool exited, process_.HasExited());
  if (exited) return base::TargetExited(absl::StrCat("process ", process_.pid(), " has exited"));
  NoteFullResend(vma.range, base::ErrnoOf(status) == EBUSY
                                ? kForeignReason
                                : absl::StrCat("it cannot be armed: ", status.message()));
  return Armed::kNot;
}

absl::Status UffdWpTracker::UnregisterInSteps(const Vma& vma) {
  const AddressRange range = vma.range;
  // A step that joins a piece of a file mapping with the piece before it may meet a BUG_ON in Linux
  // 6.12, with the target's memory locked for good: the joined mapping is looked at once more, and
  // one of a file that is not registered must not be there. So these go whole.
  const bool whole = vma.kind == VmaKind::kFilePrivate;
  const uint64_t step = StepSize(range.size()).value();
  for (uint64_t at = range.start().value(); at < range.end().value();) {
    const uint64_t stop =
        whole ? range.end().value() : std::min(range.end().value(), (at / step + 1) * step);
    const AddressRange piece = AddressRange::FromOrdered(at, stop);
    PREDUMP_RETURN_IF_ERROR(uffd_->Unregister(piece));
    most_bytes_in_one_unregister_ = std::max(most_bytes_in_one_unregister_, piece.size());
    at = stop;
  }
  return absl::OkStatus();
}

void UffdWpTracker::NoteFullResend(AddressRange range, absl::string_view reason) {
  full_resends_.push_back({range, std::string(reason)});
}

absl::Status UffdWpTracker::Disarm() {
  if (!uffd_.has_value()) return absl::OkStatus();
  // Closing the descriptor at once would hold the target's memory lock for tens of milliseconds, so
  // it closes on next to nothing. Mappings that change or go meanwhile are left to the close, and
  // so are those of files: what may be next to them is not known (UnregisterInSteps).
  absl::Status status;
  const absl::StatusOr<VmaList> vmas = VmaList::Read(process_, /*with_flags=*/false);
  if (vmas.ok()) {
    for (const Vma& vma : vmas->vmas()) {
      if (vma.kind == VmaKind::kAnonymousPrivate) UnregisterInSteps(vma).IgnoreError();
    }
  } else if (!base::IsTargetExited(vmas.status())) {
    status = vmas.status();
  }
  uffd_.reset();
  return status;
}

}  // namespace predump::pagemap
