#include "src/pagemap/layout.h"

#include <sys/mman.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "src/pagemap/extent.h"

namespace predump::pagemap {
namespace {

using base::AddressRange;
using base::RemoteAddress;
using kernel::VmFlag;

std::vector<const Vma*> InLayout(const VmaList& list) {
  std::vector<const Vma*> vmas;
  vmas.reserve(list.vmas().size());
  for (const Vma& vma : list.vmas()) {
    if (IsInLayout(vma)) vmas.push_back(&vma);
  }
  return vmas;
}

bool IsFile(const Vma& vma) { return vma.kind != VmaKind::kAnonymousPrivate; }

LayoutOp MapOp(const Vma& vma, AddressRange range) {
  LayoutOp op;
  op.kind = LayoutOp::Kind::kMap;
  op.range = range;
  op.prot = vma.prot;
  op.grows_down = vma.grows_down;
  op.huge_pages = vma.flags.Has(VmFlag::kHugePage);
  op.no_huge_pages = vma.flags.Has(VmFlag::kNoHugePage);
  op.no_reserve = vma.flags.Has(VmFlag::kNoReserve);
  if (IsFile(vma)) {
    op.path = vma.path;
    op.file_offset_bytes = vma.file_offset_bytes + (range.start() - vma.range.start()).value();
    op.shared = vma.kind == VmaKind::kFileShared;
    op.writable_file = op.shared && (vma.flags_known() ? vma.flags.Has(VmFlag::kMayWrite)
                                                       : (vma.prot & PROT_WRITE) != 0);
  }
  return op;
}

// Appends one kMap for each part of `vma` that no mapping of `before` keeps. `from` is the first of
// `before` that may overlap; it is advanced.
void MapWhatIsNew(const Vma& vma, const std::vector<const Vma*>& before, size_t& from,
                  std::vector<LayoutOp>& maps) {
  while (from < before.size() && before[from]->range.end() <= vma.range.start()) ++from;
  RemoteAddress done = vma.range.start();
  const auto map_until = [&](RemoteAddress end) {
    if (done < end) {
      maps.push_back(MapOp(vma, AddressRange::FromOrdered(done.value(), end.value())));
    }
  };
  for (size_t i = from; i < before.size() && before[i]->range.start() < vma.range.end(); ++i) {
    if (!KeepsContents(*before[i], vma)) continue;
    const AddressRange kept = vma.range.Intersect(before[i]->range);
    map_until(kept.start());
    done = kept.end();
  }
  map_until(vma.range.end());
}

}  // namespace

bool IsInLayout(const Vma& vma) {
  return vma.is_private_memory() || vma.kind == VmaKind::kFileShared;
}

bool KeepsContents(const Vma& before, const Vma& after) {
  if (before.kind != after.kind) return false;
  // No living mapping changes its direction of growth, so a difference is a new mapping; but
  // without flags only the one named [stack] is known to grow.
  if (before.flags_known() && after.flags_known() && before.grows_down != after.grows_down) {
    return false;
  }
  if (!IsFile(before)) return true;
  // Wraps around alike on both sides where a file is mapped at an address below its offset.
  return before.device == after.device && before.inode == after.inode &&
         before.file_offset_bytes - before.range.start().value() ==
             after.file_offset_bytes - after.range.start().value();
}

std::vector<LayoutOp> DiffLayout(const VmaList& before, const VmaList& after) {
  const std::vector<const Vma*> old_vmas = InLayout(before);
  const std::vector<const Vma*> new_vmas = InLayout(after);

  ExtentSet gone;
  for (const Vma* vma : old_vmas) gone.Add(vma->range);
  ExtentSet there;
  for (const Vma* vma : new_vmas) there.Add(vma->range);
  gone.Subtract(there);

  std::vector<LayoutOp> ops;
  for (const Extent& extent : gone.extents()) {
    LayoutOp op;
    op.kind = LayoutOp::Kind::kUnmap;
    op.range = extent;
    ops.push_back(std::move(op));
  }
  size_t from = 0;
  for (const Vma* vma : new_vmas) MapWhatIsNew(*vma, old_vmas, from, ops);
  return ops;
}

}  // namespace predump::pagemap
