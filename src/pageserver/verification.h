// --verify at the target: what the source says of its pages against what was built or stored here.
//
// Thread rule: one thread at a time.
#ifndef PREDUMP_PAGESERVER_VERIFICATION_H_
#define PREDUMP_PAGESERVER_VERIFICATION_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/session.pb.h"
#include "proto/state.pb.h"
#include "src/base/units.h"
#include "src/images/page_chain.h"
#include "src/kernel/process.h"
#include "src/pagemap/extent.h"
#include "src/pagemap/page_hash.h"
#include "src/pageserver/session_link.h"

namespace predump::pageserver {

class Verification {
 public:
  // `state` bounds how many pages a peer may list, and says where the kernel itself writes.
  explicit Verification(const proto::ProcessState& state);

  // Takes all messages, of which `first` has arrived. Errors: as Add and SessionLink::Next.
  absl::Status Receive(SessionLink& link, const transport::ControlFrame& first);
  // Takes one message; true once it was the last. DataLoss for ranges that are out of order, not
  // pages, or more than the process has.
  absl::StatusOr<bool> Add(const proto::Verify& message);

  // Compares with `process`, which does not run.
  absl::StatusOr<proto::VerifyReply> Compare(const kernel::ProcessHandle& process) const;

  // Compares with what a restore from `stored` would give the process. What is not stored of a
  // private file mapping is the file's: a page that this host's file of that name does not tell
  // (a store may stand on another host than the files) is not compared, and not counted.
  absl::StatusOr<proto::VerifyReply> Compare(const images::PageChain& stored) const;

 private:
  // A private mapping of a file.
  struct FileMapping {
    base::AddressRange range;
    uint64_t file_offset = 0;  // bytes
    std::string path;
  };
  // Reads pages of files that are mapped. Opens each once.
  class MappedFiles;

  static proto::VerifyReply Reply(const pagemap::PageDifferences& differences, uint64_t compared);
  const FileMapping* FindFileMapping(base::RemoteAddress address) const;
  // Reads one stored page, with what is masked as zeros. False: it is not stored.
  absl::StatusOr<bool> ReadStored(const images::PageChain& stored, base::RemoteAddress address,
                                  std::span<std::byte> page) const;

  uint64_t pages_allowed_ = 0;
  base::RemoteAddress end_;  // of what was listed so far
  pagemap::ExpectedPages expected_;
  std::vector<base::AddressRange> masked_;
  // Private memory, all of which the source lists. The vDSO is none of it, and is stored too.
  pagemap::ExtentSet listed_;
  std::vector<FileMapping> file_mappings_;  // ascending
};

}  // namespace predump::pageserver

#endif  // PREDUMP_PAGESERVER_VERIFICATION_H_
