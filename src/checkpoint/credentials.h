// Who a thread is: user and group ids, groups, capabilities, secure bits.
#ifndef PREDUMP_CHECKPOINT_CREDENTIALS_H_
#define PREDUMP_CHECKPOINT_CREDENTIALS_H_

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "proto/criu_core.pb.h"
#include "src/kernel/bpf/records.h"
#include "src/kernel/process.h"

namespace predump::checkpoint {

// Reads the credentials of the threads of one process. Threads usually share one set, and /proc is
// slow, so each set is read once per object: make a new one for each look at the process.
class CredentialsReader {
 public:
  explicit CredentialsReader(const kernel::ProcessHandle& process) : process_(&process) {}

  // `tid` in our pid namespace. The result lives as long as the reader.
  absl::StatusOr<const criu::creds_entry*> Read(pid_t tid, const kernel::ThreadRecord& record);

 private:
  const kernel::ProcessHandle* process_;
  // No-new-privileges is an attribute of the thread, not of its credentials.
  absl::flat_hash_map<std::pair<uint64_t, bool>, std::unique_ptr<criu::creds_entry>> known_;
};

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_CREDENTIALS_H_
