#include "src/pageserver/verification.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "src/base/errors.h"
#include "src/pagemap/vma.h"
#include "src/transport/data_check.h"

namespace predump::pageserver {
namespace {

constexpr int kMaxRangesTold = 100;

void Tell(const pagemap::ExtentSet& pages, absl::string_view remark, proto::VerifyReply& reply) {
  reply.set_pages_differing(reply.pages_differing() + pages.pages().value());
  for (const pagemap::Extent& extent : pages.extents()) {
    if (reply.differing_ranges_size() >= kMaxRangesTold) return;
    reply.add_differing_ranges(
        absl::StrCat(extent.ToString(), " (", extent.pages().value(), " pages", remark, ")"));
  }
}

}  // namespace

Verification::Verification(const proto::ProcessState& state) {
  for (const auto& vma : state.mm().vmas()) {
    pages_allowed_ += (vma.end() - vma.start()) / base::PageSize();
  }
  // The kernel writes into registered rseq areas at every return to user space, on either host.
  for (const proto::ThreadState& thread : state.threads()) {
    if (!thread.core().thread_core().has_rseq_entry()) continue;
    const auto& rseq = thread.core().thread_core().rseq_entry();
    const uint64_t start = rseq.rseq_abi_pointer();
    masked_.push_back(base::AddressRange::FromOrdered(start, start + rseq.rseq_abi_size()));
  }
}

absl::StatusOr<bool> Verification::Add(const proto::Verify& message) {
  for (const proto::VerifyRange& range : message.ranges()) {
    const auto pages = static_cast<uint64_t>(range.page_hashes_size());
    if (pages > pages_allowed_ - expected_.hashes.size()) {
      return absl::DataLossError("the source lists more pages than the process has");
    }
    const transport::DataDefect defect =
        transport::CheckRange(range.start(), pages * base::PageSize());
    if (defect != transport::DataDefect::kNone || range.start() < end_.value()) {
      return absl::DataLossError(
          absl::StrCat("the source's list of pages has ",
                       transport::DescribeDefect(defect != transport::DataDefect::kNone
                                                     ? defect
                                                     : transport::DataDefect::kNotAscending)));
    }
    end_ = base::RemoteAddress(range.start() + pages * base::PageSize());
    expected_.pages.Add(base::AddressRange::FromOrdered(range.start(), end_.value()));
    expected_.hashes.insert(expected_.hashes.end(), range.page_hashes().begin(),
                            range.page_hashes().end());
  }
  return message.last();
}

absl::StatusOr<proto::VerifyReply> Verification::Compare(
    const kernel::ProcessHandle& process) const {
  PREDUMP_ASSIGN_OR_RETURN(const pagemap::VmaList vmas,
                           pagemap::VmaList::Read(process, /*with_flags=*/false));
  PREDUMP_ASSIGN_OR_RETURN(const pagemap::PageDifferences differences,
                           pagemap::ComparePages(process, vmas, expected_, masked_));
  proto::VerifyReply reply;
  reply.set_pages_compared(expected_.hashes.size());
  reply.set_pages_differing(0);
  Tell(differences.differing, "", reply);
  Tell(differences.unexpected, " that hold data here only", reply);
  return reply;
}

}  // namespace predump::pageserver
