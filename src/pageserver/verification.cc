#include "src/pageserver/verification.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "src/base/errors.h"
#include "src/base/unique_fd.h"
#include "src/images/image_constants.h"
#include "src/images/image_set.h"
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

class Verification::MappedFiles {
 public:
  // Whether the file tells what a page of `mapping` holds: whole, as the kernel maps it.
  bool Read(const FileMapping& mapping, base::RemoteAddress address, std::span<std::byte> page) {
    auto [file, added] = files_.try_emplace(mapping.path);
    if (added) {
      file->second =
          base::UniqueFd(::open(mapping.path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    }
    if (!file->second.valid()) return false;
    const uint64_t offset = mapping.file_offset + (address - mapping.range.start()).value();
    const ssize_t got =
        ::pread(file->second.get(), page.data(), page.size(), static_cast<off_t>(offset));
    if (got <= 0) return false;
    std::fill(page.begin() + got, page.end(), std::byte{0});
    return true;
  }

 private:
  absl::flat_hash_map<std::string, base::UniqueFd> files_;
};

Verification::Verification(const proto::ProcessState& state) {
  const images::FileIndex files(state);
  for (const auto& vma : state.mm().vmas()) {
    const criu::reg_file_entry* file = (vma.status() & images::kVmaFilePrivate) != 0
                                           ? files.FindRegular(static_cast<uint32_t>(vma.shmid()))
                                           : nullptr;
    if (file != nullptr) {
      file_mappings_.push_back(
          {base::AddressRange::FromOrdered(vma.start(), vma.end()), vma.pgoff(), file->name()});
    }
    pages_allowed_ += (vma.end() - vma.start()) / base::PageSize();
    if ((vma.status() & (images::kVmaAnonymousPrivate | images::kVmaFilePrivate)) != 0 &&
        (vma.status() & (images::kVmaVdso | images::kVmaVvar)) == 0) {
      listed_.Add(base::AddressRange::FromOrdered(vma.start(), vma.end()));
    }
  }
  // The kernel writes into registered rseq areas at every return to user space, on either host.
  for (const proto::ThreadState& thread : state.threads()) {
    if (!thread.core().thread_core().has_rseq_entry()) continue;
    const auto& rseq = thread.core().thread_core().rseq_entry();
    const uint64_t start = rseq.rseq_abi_pointer();
    masked_.push_back(base::AddressRange::FromOrdered(start, start + rseq.rseq_abi_size()));
  }
}

absl::Status Verification::Receive(SessionLink& link, const transport::ControlFrame& first) {
  transport::ControlFrame frame = first;
  for (;;) {
    PREDUMP_ASSIGN_OR_RETURN(
        const proto::Verify message,
        transport::ControlChannel::Parse<proto::Verify>(frame, proto::CONTROL_VERIFY));
    PREDUMP_ASSIGN_OR_RETURN(const bool last, Add(message));
    if (last) return absl::OkStatus();
    PREDUMP_ASSIGN_OR_RETURN(frame, link.Next(transport::Deadline::Never()));
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
  return Reply(differences, expected_.hashes.size());
}

absl::StatusOr<bool> Verification::ReadStored(const images::PageChain& stored,
                                              base::RemoteAddress address,
                                              std::span<std::byte> page) const {
  if (stored.Find(address.value()) == nullptr) return false;
  PREDUMP_RETURN_IF_ERROR(stored.Read(address.value(), page));
  const auto whole =
      base::AddressRange::FromOrdered(address.value(), address.value() + page.size());
  for (const base::AddressRange& masked : masked_) {
    const base::AddressRange part = whole.Intersect(masked);
    if (part.empty()) continue;
    const auto bytes = page.subspan((part.start() - address).value(), part.size().value());
    std::fill(bytes.begin(), bytes.end(), std::byte{0});
  }
  return true;
}

const Verification::FileMapping* Verification::FindFileMapping(base::RemoteAddress address) const {
  const auto after = std::partition_point(
      file_mappings_.begin(), file_mappings_.end(),
      [&](const FileMapping& mapping) { return mapping.range.end() <= address; });
  return after != file_mappings_.end() && after->range.Contains(address) ? &*after : nullptr;
}

absl::StatusOr<proto::VerifyReply> Verification::Compare(const images::PageChain& stored) const {
  pagemap::PageDifferences differences;
  MappedFiles files;
  const std::vector<std::byte> zeros(base::PageSize());
  std::vector<std::byte> page(base::PageSize());
  std::vector<std::byte> in_file(base::PageSize());
  const auto range_at = [&](base::RemoteAddress at) {
    return base::AddressRange::FromOrdered(at.value(), at.value() + page.size());
  };
  const base::ByteCount step(page.size());
  size_t next = 0;
  uint64_t compared = 0;
  for (const pagemap::Extent& extent : expected_.pages.extents()) {
    for (base::RemoteAddress at = extent.start(); at < extent.end(); at = at + step) {
      const uint64_t expected = expected_.hashes[next++];
      PREDUMP_ASSIGN_OR_RETURN(const bool is_stored, ReadStored(stored, at, page));
      if (!is_stored) {
        const FileMapping* mapping = FindFileMapping(at);
        if (mapping == nullptr) {
          page = zeros;
        } else if (!files.Read(*mapping, at, page)) {
          continue;
        }
      }
      ++compared;
      if (pagemap::HashPage(page) != expected) differences.differing.Add(range_at(at));
    }
  }
  pagemap::ExtentSet others;
  for (const images::StoredRun& run : stored.runs()) {
    others.Add(base::AddressRange::FromOrdered(run.start, run.end()));
  }
  others = others.Intersection(listed_);
  others.Subtract(expected_.pages);
  for (const pagemap::Extent& extent : others.extents()) {
    for (base::RemoteAddress at = extent.start(); at < extent.end(); at = at + step) {
      PREDUMP_RETURN_IF_ERROR(ReadStored(stored, at, page));
      // The source has nothing of its own there: zeros, or what the file says.
      const FileMapping* mapping = FindFileMapping(at);
      if (mapping != nullptr && !files.Read(*mapping, at, in_file)) continue;
      if (page != (mapping != nullptr ? in_file : zeros)) differences.unexpected.Add(range_at(at));
    }
  }
  return Reply(differences, compared);
}

proto::VerifyReply Verification::Reply(const pagemap::PageDifferences& differences,
                                       uint64_t compared) {
  proto::VerifyReply reply;
  reply.set_pages_compared(compared);
  reply.set_pages_differing(0);
  Tell(differences.differing, "", reply);
  Tell(differences.unexpected, " that hold data here only", reply);
  return reply;
}

}  // namespace predump::pageserver
