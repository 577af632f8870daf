#include "src/predump/memory_comparison.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "src/base/errors.h"
#include "src/pagemap/page_hash.h"
#include "src/transport/deadline.h"

namespace predump {
namespace {

// Hashing runs at memory speed on both ends; this is for hundreds of GiB.
constexpr absl::Duration kVerifyTimeout = absl::Minutes(10);
// Keeps one Verify message well under the limit of a control frame.
constexpr size_t kHashesPerMessage = 1u << 20;

std::vector<base::AddressRange> RseqAreas(const proto::ProcessState& state) {
  std::vector<base::AddressRange> areas;
  for (const proto::ThreadState& thread : state.threads()) {
    if (!thread.core().thread_core().has_rseq_entry()) continue;
    const auto& rseq = thread.core().thread_core().rseq_entry();
    const uint64_t start = rseq.rseq_abi_pointer();
    areas.push_back(base::AddressRange::FromOrdered(start, start + rseq.rseq_abi_size()));
  }
  return areas;
}

}  // namespace

absl::StatusOr<std::vector<proto::Verify>> HashMemory(const kernel::ProcessHandle& process,
                                                      const pagemap::VmaList& vmas,
                                                      const proto::ProcessState& state) {
  PREDUMP_ASSIGN_OR_RETURN(const pagemap::ExtentSet pages, pagemap::DataPages(process, vmas));
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<uint64_t> hashes,
                           pagemap::HashPages(process, pages.extents(), RseqAreas(state)));
  std::vector<proto::Verify> messages(1);
  size_t next_hash = 0;
  size_t room = kHashesPerMessage;
  for (const pagemap::Extent& extent : pages.extents()) {
    uint64_t address = extent.start().value();
    while (address < extent.end().value()) {
      if (room == 0) {
        messages.emplace_back();
        room = kHashesPerMessage;
      }
      const size_t left = (extent.end().value() - address) / base::PageSize();
      const size_t n = std::min(left, room);
      proto::VerifyRange* range = messages.back().add_ranges();
      range->set_start(address);
      const auto first = hashes.begin() + static_cast<ptrdiff_t>(next_hash);
      range->mutable_page_hashes()->Add(first, first + static_cast<ptrdiff_t>(n));
      address += n * base::PageSize();
      next_hash += n;
      room -= n;
    }
  }
  for (size_t i = 0; i < messages.size(); ++i) messages[i].set_last(i + 1 == messages.size());
  return messages;
}

absl::StatusOr<base::PageCount> CompareAtTarget(transport::ControlChannel& control,
                                                const std::vector<proto::Verify>& hashes) {
  const auto deadline = transport::Deadline::After(kVerifyTimeout);
  for (const proto::Verify& message : hashes) {
    PREDUMP_RETURN_IF_ERROR(control.Send(proto::CONTROL_VERIFY, message, deadline));
  }
  PREDUMP_ASSIGN_OR_RETURN(
      const proto::VerifyReply reply,
      control.Expect<proto::VerifyReply>(proto::CONTROL_VERIFY_REPLY, deadline));
  if (reply.pages_differing() != 0 || reply.differing_ranges_size() != 0) {
    return absl::DataLossError(absl::StrCat(
        "--verify: ", reply.pages_differing(),
        " pages differ at the target: ", absl::StrJoin(reply.differing_ranges(), ", ")));
  }
  return base::PageCount(reply.pages_compared());
}

}  // namespace predump
