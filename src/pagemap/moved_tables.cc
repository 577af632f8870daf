#include "src/pagemap/moved_tables.h"

#include <algorithm>
#include <utility>

#include "absl/functional/function_ref.h"
#include "src/base/errors.h"
#include "src/kernel/pagemap_scan.h"

namespace predump::pagemap {
namespace {

using base::AddressRange;
using base::RemoteAddress;

// What one page table of the lowest level maps.
constexpr uint64_t kTableBytes = 2ull << 20;

// Calls `visit` for each table that `pages` has a part in, ascending.
absl::Status ForEachTable(
    const ExtentSet& pages,
    absl::FunctionRef<absl::Status(uint64_t table, const ExtentSet& part)> visit) {
  ExtentSet part;
  uint64_t table = 0;
  for (const Extent& extent : pages.extents()) {
    for (uint64_t at = extent.start().value(); at < extent.end().value();) {
      if (at / kTableBytes != table && !part.empty()) {
        PREDUMP_RETURN_IF_ERROR(visit(table, part));
        part.clear();
      }
      table = at / kTableBytes;
      const uint64_t stop = std::min(extent.end().value(), (table + 1) * kTableBytes);
      part.Add(AddressRange::FromOrdered(at, stop));
      at = stop;
    }
  }
  return part.empty() ? absl::OkStatus() : visit(table, part);
}

RemoteAddress PageAt(const ExtentSet& pages, uint64_t index) {
  for (const Extent& extent : pages.extents()) {
    const uint64_t count = extent.pages().value();
    if (index < count) return extent.start() + base::ToBytes(base::PageCount(index));
    index -= count;
  }
  return RemoteAddress();
}

// 0 where the entry proves nothing: not in memory, or frames are hidden from us.
uint64_t FrameIn(uint64_t entry) {
  return (entry & kernel::kPagemapPresent) != 0 ? entry & kernel::kPagemapFrame : 0;
}

}  // namespace

absl::StatusOr<bool> MovedTables::Recognised(const Witnesses& witnesses, const ExtentSet& unmarked,
                                             const PageScanner& scanner) const {
  for (const Witness& witness : witnesses) {
    // A marked page may be a new one, in a frame that was free again.
    if (witness.frame == 0 || !unmarked.Contains(witness.page)) continue;
    PREDUMP_ASSIGN_OR_RETURN(const uint64_t entry, scanner.Entry(witness.page));
    if (FrameIn(entry) == witness.frame) return true;
  }
  return false;
}

absl::StatusOr<ExtentSet> MovedTables::Doubtful(const ExtentSet& unmarked,
                                                const PageScanner& scanner) {
  recognised_.clear();
  ExtentSet doubtful;
  PREDUMP_RETURN_IF_ERROR(
      ForEachTable(unmarked, [&](uint64_t table, const ExtentSet& part) -> absl::Status {
        const auto known = tables_.find(table);
        bool recognised = false;
        if (known != tables_.end()) {
          PREDUMP_ASSIGN_OR_RETURN(recognised, Recognised(known->second, part, scanner));
        }
        if (recognised) {
          recognised_.insert(table);
        } else {
          doubtful.AddAll(part);
        }
        return absl::OkStatus();
      }));
  return doubtful;
}

absl::Status MovedTables::Remember(const ExtentSet& data, const ExtentSet& unmarked,
                                   const PageScanner& scanner) {
  std::map<uint64_t, Witnesses> tables;
  const absl::Status status =
      ForEachTable(data, [&](uint64_t table, const ExtentSet& part) -> absl::Status {
        if (recognised_.count(table) != 0) {
          tables[table] = tables_[table];
          return absl::OkStatus();
        }
        const ExtentSet quiet = part.Intersection(unmarked);
        const ExtentSet& from = quiet.empty() ? part : quiet;
        const uint64_t count = from.pages().value();
        Witnesses& witnesses = tables[table];
        for (size_t i = 0; i < witnesses.size(); ++i) {
          const RemoteAddress page = PageAt(from, i * (count - 1) / (witnesses.size() - 1));
          if (i > 0 && page == witnesses[i - 1].page) continue;
          PREDUMP_ASSIGN_OR_RETURN(const uint64_t entry, scanner.Entry(page));
          witnesses[i] = {page, FrameIn(entry)};
        }
        return absl::OkStatus();
      });
  tables_ = std::move(tables);
  return status;
}

}  // namespace predump::pagemap
