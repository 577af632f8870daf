// Notices page tables that mremap(2) moved as a whole, which soft-dirty marks do not show.
//
// mremap marks every page that it moves one by one. Where old and new place are congruent modulo
// 2 MiB it moves page tables instead, and marks nothing (Linux 5.0 to 6.12 at least): memory that
// was sent from its old place then looks unwritten at the new one, where something else was sent.
//
//   reset:   A @0x200000 (sent)   B @0x800000 (sent)
//   mremap(0x200000 -> 0x800000)
//   scan:    -                    A @0x800000, no page marked: the target still has B there
//
// What tells is the frames. Of each table a few pages are remembered with the frame that was behind
// them; one of them that is unmarked and has its frame still is the page it was, and so are its
// neighbours. A table without such a page is doubtful. Not noticed: a table that moved away and
// came back between two scans. Thread rule: one thread at a time; the target is frozen.
#ifndef PREDUMP_PAGEMAP_MOVED_TABLES_H_
#define PREDUMP_PAGEMAP_MOVED_TABLES_H_

#include <array>
#include <cstdint>
#include <map>
#include <set>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/base/units.h"
#include "src/pagemap/extent.h"
#include "src/pagemap/page_scanner.h"

namespace predump::pagemap {

class MovedTables {
 public:
  // The part of `unmarked` (pages of data without mark) that lies in doubtful tables.
  absl::StatusOr<ExtentSet> Doubtful(const ExtentSet& unmarked, const PageScanner& scanner);

  // Call when the marks are reset: remembers pages of every table of `data`, rather such as were
  // `unmarked` until now, for those are the least likely to be written next.
  absl::Status Remember(const ExtentSet& data, const ExtentSet& unmarked,
                        const PageScanner& scanner);

 private:
  struct Witness {
    base::RemoteAddress page;
    uint64_t frame = 0;  // 0: none
  };
  using Witnesses = std::array<Witness, 4>;

  absl::StatusOr<bool> Recognised(const Witnesses& witnesses, const ExtentSet& unmarked,
                                  const PageScanner& scanner) const;

  std::map<uint64_t, Witnesses> tables_;  // by number: address / 2 MiB
  std::set<uint64_t> recognised_;         // tables the last Doubtful() found to be the same
};

}  // namespace predump::pagemap

#endif  // PREDUMP_PAGEMAP_MOVED_TABLES_H_
