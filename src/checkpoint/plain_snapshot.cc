#include "src/checkpoint/plain_snapshot.h"

#include <asm/prctl.h>
#include <linux/membarrier.h>
#include <linux/prctl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/base/units.h"
#include "src/checkpoint/attribute_check.h"
#include "src/checkpoint/plain_outside.h"
#include "src/kernel/readout_injection.h"
#include "src/kernel/time_offsets.h"

namespace predump::checkpoint {
namespace {

// Newer than the headers of some systems.
constexpr uint64_t kGetMdwe = 66;                      // PR_GET_MDWE, Linux 6.3
constexpr uint64_t kGetMemoryMerge = 68;               // PR_GET_MEMORY_MERGE, Linux 6.4
constexpr uint64_t kGetMembarrierRegistrations = 512;  // MEMBARRIER_CMD_GET_REGISTRATIONS, 6.3
constexpr uint64_t kGetXstatePermissions = 0x1022;     // ARCH_GET_XCOMP_PERM, Linux 5.16
constexpr uint64_t kGetUntagMask = 0x4001;             // ARCH_GET_UNTAG_MASK, Linux 6.4
constexpr uint64_t kProtectionKeys = 16;
constexpr uint64_t kVmLocked = 0x2000;
constexpr uint64_t kVmLockOnFault = 0x80000;
constexpr uint64_t kSignalSetBytes = 8;

// Appends calls and hands out their places.
class CallList {
 public:
  size_t Add(uint64_t number, std::array<uint64_t, 6> arguments = {}) {
    calls_.push_back({.number = number, .arguments = arguments});
    return calls_.size() - 1;
  }
  size_t AddWithBuffer(uint64_t number, std::array<uint64_t, 6> arguments, size_t argument,
                       size_t bytes) {
    calls_.push_back({.number = number,
                      .arguments = arguments,
                      .buffer_argument = argument,
                      .buffer_bytes = bytes});
    return calls_.size() - 1;
  }
  kernel::ReadoutCall& operator[](size_t index) { return calls_[index]; }
  std::vector<kernel::ReadoutCall> Take() && { return std::move(calls_); }

 private:
  std::vector<kernel::ReadoutCall> calls_;
};

template <typename T>
T As(const kernel::ReadoutAnswer& answer) {
  static_assert(std::is_trivially_copyable_v<T>);
  T value = {};
  memcpy(&value, answer.bytes.data(), std::min(sizeof value, answer.bytes.size()));
  return value;
}

// 0 where the kernel does not know the question: then nothing can have been set.
uint32_t FlagOf(const kernel::ReadoutAnswer& answer) {
  return answer.result > 0 ? static_cast<uint32_t>(answer.result) : 0;
}

struct ThreadCalls {
  size_t tid_address, stack, death_signal, timer_slack, secure_bits;
  size_t time_stamp_counter, cpuid, memory_policy;

  explicit ThreadCalls(CallList& calls) {
    tid_address = calls.AddWithBuffer(SYS_prctl, {PR_GET_TID_ADDRESS}, 1, sizeof(uint64_t));
    stack = calls.AddWithBuffer(SYS_sigaltstack, {}, 1, sizeof(stack_t));
    death_signal = calls.AddWithBuffer(SYS_prctl, {PR_GET_PDEATHSIG}, 1, sizeof(int32_t));
    timer_slack = calls.Add(SYS_prctl, {PR_GET_TIMERSLACK});
    secure_bits = calls.Add(SYS_prctl, {PR_GET_SECUREBITS});
    time_stamp_counter = calls.AddWithBuffer(SYS_prctl, {PR_GET_TSC}, 1, sizeof(int32_t));
    cpuid = calls.Add(SYS_arch_prctl, {ARCH_GET_CPUID});
    memory_policy = calls.AddWithBuffer(SYS_get_mempolicy, {}, 0, sizeof(int32_t));
  }

  absl::Status Fill(const std::vector<kernel::ReadoutAnswer>& answers,
                    kernel::ThreadRecord& record) const {
    if (answers[tid_address].result < 0) {
      return absl::UnimplementedError(
          "this kernel tells no thread its own address to clear (CONFIG_CHECKPOINT_RESTORE), and "
          "there is no BPF");
    }
    record.clear_child_tid = As<uint64_t>(answers[tid_address]);
    const stack_t alternate = As<stack_t>(answers[stack]);
    record.alt_stack_address = reinterpret_cast<uint64_t>(alternate.ss_sp);
    record.alt_stack_bytes = alternate.ss_size;
    record.alt_stack_flags = static_cast<uint32_t>(alternate.ss_flags);
    record.parent_death_signal = As<int32_t>(answers[death_signal]);
    record.timer_slack = static_cast<uint64_t>(answers[timer_slack].result);
    record.secure_bits = FlagOf(answers[secure_bits]);
    if (As<int32_t>(answers[time_stamp_counter]) == PR_TSC_SIGSEGV) {
      record.thread_flags |= kNoTimeStampCounter;
    }
    if (answers[cpuid].result == 0) record.thread_flags |= kNoCpuid;
    record.has_memory_policy = As<int32_t>(answers[memory_policy]) != 0 ? 1 : 0;
    return absl::OkStatus();
  }
};

struct Interval {
  uint64_t left_ns;
  uint64_t interval_ns;

  explicit Interval(const kernel::ReadoutAnswer& answer) {
    const struct itimerval value = As<struct itimerval>(answer);
    const auto nanoseconds = [](const struct timeval& time) {
      return static_cast<uint64_t>(time.tv_sec) * 1'000'000'000 +
             static_cast<uint64_t>(time.tv_usec) * 1'000;
    };
    left_ns = nanoseconds(value.it_value);
    interval_ns = nanoseconds(value.it_interval);
  }
};

// membarrier(2) registrations as the kernel's MEMBARRIER_STATE_* bits.
uint32_t MembarrierState(const kernel::ReadoutAnswer& answer) {
  const uint32_t commands = FlagOf(answer);
  uint32_t state = 0;
  if ((commands & MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) != 0) state |= 1u << 1;
  if ((commands & MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED) != 0) state |= 1u << 3;
  if ((commands & MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE) != 0) state |= 1u << 5;
  if ((commands & MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ) != 0) state |= 1u << 7;
  return state;
}

// Asked of the leader. The timers come first: their time runs, counted from the clock before them.
struct ProcessCalls {
  size_t clock;
  size_t timers[3];
  size_t heap_end, subreaper, dumpable, huge_pages, execute_gain, merge, barriers, descriptors;
  size_t locked, resident;
  size_t xstate, untag_mask, keys;
  size_t actions[kernel::kSignals];

  explicit ProcessCalls(CallList& calls) {
    clock = calls.AddWithBuffer(SYS_clock_gettime, {CLOCK_MONOTONIC}, 1, sizeof(struct timespec));
    for (uint64_t which = 0; which < 3; ++which) {
      timers[which] = calls.AddWithBuffer(SYS_getitimer, {which}, 1, sizeof(struct itimerval));
    }
    heap_end = calls.Add(SYS_brk);
    subreaper = calls.AddWithBuffer(SYS_prctl, {PR_GET_CHILD_SUBREAPER}, 1, sizeof(int32_t));
    dumpable = calls.Add(SYS_prctl, {PR_GET_DUMPABLE});
    huge_pages = calls.Add(SYS_prctl, {PR_GET_THP_DISABLE});
    execute_gain = calls.Add(SYS_prctl, {kGetMdwe});
    merge = calls.Add(SYS_prctl, {kGetMemoryMerge});
    barriers = calls.Add(SYS_membarrier, {kGetMembarrierRegistrations});
    descriptors =
        calls.AddWithBuffer(SYS_modify_ldt, {0, 0, sizeof(uint64_t)}, 1, sizeof(uint64_t));
    // mlockall(MCL_FUTURE) shows on new memory only: locked pages cannot be invalidated, and they
    // are there at once unless MCL_ONFAULT was given as well.
    locked = calls.Add(SYS_msync, {0, base::PageSize(), MS_ASYNC | MS_INVALIDATE});
    calls[locked].new_page_argument = 0;
    resident = calls.AddWithBuffer(SYS_mincore, {0, base::PageSize()}, 2, 1);
    calls[resident].new_page_argument = 0;
    xstate = calls.AddWithBuffer(SYS_arch_prctl, {kGetXstatePermissions}, 1, sizeof(uint64_t));
    untag_mask = calls.AddWithBuffer(SYS_arch_prctl, {kGetUntagMask}, 1, sizeof(uint64_t));
    // A key can be given to memory only where it has been allocated. Last of what uses the page.
    for (uint64_t key = 1; key < kProtectionKeys; ++key) {
      const size_t call = calls.Add(SYS_pkey_mprotect, {0, base::PageSize(), PROT_READ, key});
      calls[call].new_page_argument = 0;
      if (key == 1) keys = call;
    }
    for (uint64_t signal = 1; signal <= kernel::kSignals; ++signal) {
      actions[signal - 1] = calls.AddWithBuffer(SYS_rt_sigaction, {signal, 0, 0, kSignalSetBytes},
                                                2, sizeof(kernel::SignalAction));
    }
  }

  // `clock_offset_ns`: what the process's time namespace adds to the host's CLOCK_MONOTONIC.
  void Fill(const std::vector<kernel::ReadoutAnswer>& answers, int64_t clock_offset_ns,
            kernel::ProcessRecord& record) const {
    const struct timespec read = As<struct timespec>(answers[clock]);
    record.monotonic_now =
        static_cast<uint64_t>(read.tv_sec * 1'000'000'000 + read.tv_nsec - clock_offset_ns);
    const Interval real(answers[timers[ITIMER_REAL]]);
    record.real_timer_armed = real.left_ns != 0 ? 1 : 0;
    record.real_timer_interval = real.interval_ns;
    record.real_timer_expires = record.monotonic_now + real.left_ns;
    record.itimer_clock = CLOCK_MONOTONIC;
    const Interval used(answers[timers[ITIMER_VIRTUAL]]);
    record.virtual_timer = {.expires = used.left_ns, .interval = used.interval_ns, .now = 0};
    const Interval profiled(answers[timers[ITIMER_PROF]]);
    record.profiling_timer = {
        .expires = profiled.left_ns, .interval = profiled.interval_ns, .now = 0};
    record.brk = static_cast<uint64_t>(answers[heap_end].result);
    record.is_child_subreaper = As<int32_t>(answers[subreaper]) != 0 ? 1 : 0;
    record.dumpable = FlagOf(answers[dumpable]);
    record.mm_flags |= record.dumpable;
    // 3: all but where advised.
    record.thp_disabled = answers[huge_pages].result == 1 ? 1 : 0;
    record.thp_disabled_but_advised = answers[huge_pages].result == 3 ? 1 : 0;
    record.mdwe = FlagOf(answers[execute_gain]);
    record.memory_merge_any = FlagOf(answers[merge]);
    record.membarrier_state = MembarrierState(answers[barriers]);
    record.has_ldt = FlagOf(answers[descriptors]) != 0 ? 1 : 0;
    record.xstate_permissions = As<uint64_t>(answers[xstate]);
    const uint64_t mask = As<uint64_t>(answers[untag_mask]);
    record.has_address_tagging = mask != 0 && mask != ~uint64_t{0} ? 1 : 0;
    for (uint64_t key = 1; key < kProtectionKeys; ++key) {
      if (answers[keys + key - 1].result == 0) record.protection_keys |= 1u << key;
    }
    if (answers[locked].result == -EBUSY) {
      const bool present = (As<uint8_t>(answers[resident]) & 1) != 0;
      record.default_vm_flags = kVmLocked | (present ? 0 : kVmLockOnFault);
    }
    for (size_t i = 0; i < kernel::kSignals; ++i) {
      record.actions[i] = As<kernel::SignalAction>(answers[actions[i]]);
    }
  }
};

}  // namespace

absl::StatusOr<PlainSnapshotReader> PlainSnapshotReader::Create(
    const kernel::ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(const kernel::TimeOffsets ours, kernel::ReadTimeOffsets(::getpid()));
  PREDUMP_ASSIGN_OR_RETURN(const kernel::TimeOffsets theirs,
                           kernel::ReadTimeOffsets(process.pid()));
  return PlainSnapshotReader(process, ours, theirs);
}

int64_t PlainSnapshotReader::HostMonotonic() const {
  return base::MonotonicNanoseconds() - clock_offset_ns_;
}

absl::StatusOr<kernel::TaskSnapshot> PlainSnapshotReader::ReadRunning() {
  PREDUMP_ASSIGN_OR_RETURN(kernel::TaskSnapshot snapshot, ReadFromOutside());
  PREDUMP_ASSIGN_OR_RETURN(early_notes_, checkpoint::NoteSleepers(*process_));
  return snapshot;
}

void PlainSnapshotReader::RememberSetup(const kernel::SetupResult& setup) {
  if (!setup.broken_off.has_value()) return;
  early_notes_[setup.thread] = {
      .call = setup.broken_off->call, .sleep = setup.broken_off->sleep, .wait_channel = {}};
}

absl::Status PlainSnapshotReader::NoteSleepers() {
  PREDUMP_ASSIGN_OR_RETURN(late_notes_, checkpoint::NoteSleepers(*process_));
  return absl::OkStatus();
}

std::optional<uint64_t> PlainSnapshotReader::AsleepSince(pid_t tid, uint64_t switches) const {
  const auto found = late_notes_.find(tid);
  if (found == late_notes_.end() || !found->second.sleep.has_value() ||
      !found->second.sleep->LastedUntilStop(switches)) {
    return std::nullopt;
  }
  return static_cast<uint64_t>(found->second.sleep->since_ns() - clock_offset_ns_);
}

absl::StatusOr<kernel::TaskSnapshot> PlainSnapshotReader::ReadFromOutside() const {
  PREDUMP_ASSIGN_OR_RETURN(kernel::TaskSnapshot snapshot, SnapshotFromOutside(*process_));
  snapshot.process.monotonic_now = static_cast<uint64_t>(HostMonotonic());
  return snapshot;
}

absl::StatusOr<kernel::TaskSnapshot> PlainSnapshotReader::ReadFrozen(
    kernel::FrozenProcess& frozen) {
  PREDUMP_ASSIGN_OR_RETURN(kernel::TaskSnapshot snapshot, ReadFromOutside());
  if (snapshot.threads.size() != frozen.threads().size()) {
    return absl::FailedPreconditionError(
        absl::StrCat("process ", process_->pid(), " has threads that are not frozen"));
  }
  // Before the threads are asked: that ends the temporary mask of an interrupted call.
  PREDUMP_RETURN_IF_ERROR(FillCalls(frozen, snapshot));
  PREDUMP_RETURN_IF_ERROR(ReadFromInside(frozen, snapshot));
  return snapshot;
}

absl::Status PlainSnapshotReader::FillCalls(kernel::FrozenProcess& frozen,
                                            kernel::TaskSnapshot& snapshot) const {
  const auto find = [](const CallNotes& notes, pid_t tid) {
    const auto found = notes.find(tid);
    return found == notes.end() ? nullptr : &found->second;
  };
  for (size_t i = 0; i < snapshot.threads.size(); ++i) {
    kernel::ThreadRecord& record = snapshot.threads[i];
    const kernel::Tracee& tracee = frozen.threads()[i];  // in the same order
    PREDUMP_ASSIGN_OR_RETURN(record.saved_mask, tracee.GetSignalMask());
    record.restore_sigmask = record.saved_mask != record.blocked ? 1 : 0;
    PREDUMP_ASSIGN_OR_RETURN(const bool dispatched, tracee.UsesSyscallUserDispatch());
    record.dispatch_on = dispatched ? 1 : 0;
    PREDUMP_ASSIGN_OR_RETURN(const user_regs_struct registers, tracee.GetRegisters());
    const StoppedCall notes = {.early = find(early_notes_, tracee.tid()),
                               .late = find(late_notes_, tracee.tid()),
                               .switches = record.voluntary_switches,
                               .frozen_ns = static_cast<int64_t>(snapshot.process.monotonic_now),
                               .clock_offset_ns = clock_offset_ns_};
    PREDUMP_ASSIGN_OR_RETURN(record.restart,
                             RestartBlockFromNotes(*process_, tracee.tid(), registers, notes));
  }
  return absl::OkStatus();
}

absl::Status PlainSnapshotReader::ReadFromInside(kernel::FrozenProcess& frozen,
                                                 kernel::TaskSnapshot& snapshot) const {
  CallList of_leader;
  const ProcessCalls process_calls(of_leader);
  const ThreadCalls leader_calls(of_leader);
  CallList of_thread;
  const ThreadCalls thread_calls(of_thread);
  std::vector<std::vector<kernel::ReadoutCall>> calls(snapshot.threads.size(),
                                                      std::move(of_thread).Take());
  calls.front() = std::move(of_leader).Take();
  PREDUMP_ASSIGN_OR_RETURN(const auto answers, kernel::ReadOut(frozen, calls));
  process_calls.Fill(answers.front(), process_clock_offset_ns_, snapshot.process);
  for (size_t i = 0; i < answers.size(); ++i) {
    PREDUMP_RETURN_IF_ERROR(
        (i == 0 ? leader_calls : thread_calls).Fill(answers[i], snapshot.threads[i]));
  }
  return absl::OkStatus();
}

absl::StatusOr<kernel::TaskSnapshot> PlainSnapshotReader::ReadAgain(
    kernel::FrozenProcess& frozen, const kernel::TaskSnapshot& before) {
  kernel::TaskSnapshot snapshot = before;
  snapshot.process.monotonic_now = static_cast<uint64_t>(HostMonotonic());
  const bool may_be_over = before.process.real_timer_armed != 0 &&
                           snapshot.process.monotonic_now >= before.process.real_timer_expires;
  if (may_be_over) PREDUMP_RETURN_IF_ERROR(ReadFromInside(frozen, snapshot));
  return snapshot;
}

}  // namespace predump::checkpoint
