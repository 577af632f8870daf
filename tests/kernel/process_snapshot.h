// What a process shows of itself to the outside, for comparison before and after.
#ifndef PREDUMP_TESTS_KERNEL_PROCESS_SNAPSHOT_H_
#define PREDUMP_TESTS_KERNEL_PROCESS_SNAPSHOT_H_

#include <fcntl.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include "src/kernel/procfs.h"

namespace predump::kernel {

struct ProcessSnapshot {
  std::string maps;
  std::vector<pid_t> threads;
  std::vector<int> descriptors;
  std::vector<std::string> children;      // per thread
  std::vector<std::string> signal_masks;  // SigBlk, SigIgn, SigCgt per thread
  friend bool operator==(const ProcessSnapshot&, const ProcessSnapshot&) = default;
};

inline ProcessSnapshot TakeSnapshot(const ProcessHandle& process) {
  ProcessSnapshot snapshot;
  snapshot.maps = ReadProcFile(process, "maps").value_or("?");
  snapshot.threads = ListThreads(process).value_or(std::vector<pid_t>());
  snapshot.descriptors = ListDescriptors(process).value_or(std::vector<int>());
  for (const pid_t tid : snapshot.threads) {
    snapshot.children.push_back(ReadThreadFile(process, tid, "children").value_or("?"));
    const std::string status = ReadThreadFile(process, tid, "status").value_or("?");
    const size_t from = status.find("SigBlk");
    snapshot.signal_masks.push_back(
        from == std::string::npos ? "?" : status.substr(from, status.find("CapInh") - from));
  }
  return snapshot;
}

}  // namespace predump::kernel

#endif  // PREDUMP_TESTS_KERNEL_PROCESS_SNAPSHOT_H_
