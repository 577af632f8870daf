// The landing as the server holds it: its reaper, its threads, the memory shared with it.
// Passed from Landing to BuiltProcess; whoever holds it last decides whether it lives.
#ifndef PREDUMP_RESTORE_LANDING_PROCESS_H_
#define PREDUMP_RESTORE_LANDING_PROCESS_H_

#include <sys/resource.h>
#include <sys/types.h>
#include <sys/user.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "proto/session.pb.h"
#include "src/base/unique_fd.h"
#include "src/base/units.h"
#include "src/kernel/process.h"
#include "src/kernel/procfs.h"
#include "src/kernel/ptrace.h"
#include "src/restore/trampoline.h"

namespace predump::restore::internal {

// One of the vvar, vvar_vclock and vDSO mappings.
struct KernelMapping {
  std::string name;
  uint64_t start = 0;
  uint64_t bytes = 0;
};

// What the landing is before the building, so that only differences cost a call.
struct Baseline {
  kernel::StatusFields status;
  std::array<rlimit, RLIM_NLIMITS> limits{};
  std::string cpu_affinity;  // as sched_getaffinity(2) writes it
  int nice = 0;
  uint32_t policy = 0;
  uint32_t personality = 0;
  int oom_score_adj = 0;
  uint32_t login_uid = ~0u;  // none
  uint64_t timer_slack_ns = 0;
  uint32_t secure_bits = 0;
  std::string terminal;  // path of the server's controlling terminal; shell jobs only
};

struct Thread {
  pid_t inner_tid = 0;
  kernel::Tracee tracee;
};

// A thread goes on inside a call with a relative timeout in memory, of which a part has passed.
struct TimeLeft {
  size_t thread = 0;  // index
  uint64_t call = 0;
  int64_t deadline_ns = 0;      // our CLOCK_MONOTONIC
  base::RemoteAddress scratch;  // where a struct timespec may be put
};

class LandingProcess {
 public:
  LandingProcess(pid_t inner, pid_t reaper_pid, kernel::Tracee leader_tracee,
                 kernel::ProcessHandle process_handle, Trampoline shared_memory);
  LandingProcess(const LandingProcess&) = delete;
  LandingProcess& operator=(const LandingProcess&) = delete;
  ~LandingProcess();

  kernel::Tracee& leader() { return threads.front().tracee; }

  // One system call by the stopped leader through the `syscall` instruction at `gate`, with all its
  // signals blocked. Returns the raw result; the leader stands after the instruction.
  absl::StatusOr<int64_t> GateCall(base::RemoteAddress gate, uint64_t number,
                                   const std::array<uint64_t, 6>& arguments);

  pid_t inner_pid;
  pid_t reaper;
  kernel::ProcessHandle handle;
  Trampoline trampoline;
  std::vector<Thread> threads;      // leader first
  base::UniqueFd notify;            // readable: final; end of file: the landing is dead
  int64_t monotonic_offset_ns = 0;  // of the process's clock to ours
  bool reached_final = false;
  bool alive_after_us = false;  // ClearExitKill succeeded

  std::vector<KernelMapping> kernel_mappings;  // now
  Baseline baseline;
  base::RemoteAddress image_gate;  // a syscall instruction in the landing image
  base::RemoteAddress vdso_gate;   // a syscall instruction in the vDSO, once it is in place
  std::vector<user_regs_struct> final_registers;  // parallel to threads
  std::vector<uint64_t> final_masks;              // parallel to threads
  std::vector<TimeLeft> times_left;
  std::vector<std::string> bound_paths;  // of unix sockets; taken away if it does not live
  std::vector<proto::Phase> phases;
};

}  // namespace predump::restore::internal

#endif  // PREDUMP_RESTORE_LANDING_PROCESS_H_
